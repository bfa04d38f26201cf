"""The training benchmark's numbers: lengths, operations, the share of a device's peak."""

import pytest

from benchmarks.workload import (
    SHAPES,
    PairLengths,
    forward_flops,
    mfu,
    padded_tokens,
    peak_flops,
    sample_lengths,
    training_flops,
)

LLAMA = SHAPES["llama-3.2-3b"]


def test_sampled_pairs_are_as_long_as_the_first_runs() -> None:
    pairs = sample_lengths(5000, seed=0)
    assert sum(pair.tokens for pair in pairs) / 10_000 == pytest.approx(496, rel=0.02)
    assert max(max(pair.chosen, pair.rejected) for pair in pairs) <= 256
    assert min(pair.prompt for pair in pairs) >= 199


def test_equal_seeds_give_equal_pairs() -> None:
    assert sample_lengths(8, seed=1) == sample_lengths(8, seed=1) != sample_lengths(8, seed=2)


def test_the_large_shape_is_llama_3_2_3b() -> None:
    assert LLAMA.adapter_parameters == 48_627_712
    embeddings = LLAMA.vocab_size * LLAMA.hidden_size
    norms = (2 * LLAMA.num_hidden_layers + 1) * LLAMA.hidden_size
    assert LLAMA.linear_parameters + embeddings + norms == 3_212_749_824


def test_a_forward_pass_of_the_mean_pair_is_6_tflop() -> None:
    assert forward_flops(LLAMA, PairLengths(267, 229, 229)) == pytest.approx(6.04e12, rel=0.03)


def test_training_costs_twice_the_forward_pass_and_the_adapters_gradients() -> None:
    pair = PairLengths(267, 229, 229)
    assert 2.0 < training_flops(LLAMA, pair) / forward_flops(LLAMA, pair) < 2.1


def test_mfu_is_counted_against_the_devices_peak() -> None:
    assert mfu(60.5e12, 1.0, "NVIDIA L4") == pytest.approx(0.5)
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("NVIDIA L40") == 181e12
    assert peak_flops("NVIDIA H100 NVL") == 835.5e12
    assert mfu(1e12, 1.0, "AMD EPYC") is None


def test_padding_is_counted_by_how_pairs_are_laid_out() -> None:
    short, long = PairLengths(10, 5, 3), PairLengths(10, 20, 30)
    pairs = [short, long, short, long]
    assert padded_tokens(pairs, 1, ordered=False, shared=True) == (18 + 60) / 2
    assert padded_tokens(pairs, 1, ordered=False, shared=False) == (30 + 80) / 2
    assert padded_tokens(pairs, 2, ordered=False, shared=True) == 60
    assert padded_tokens(pairs, 2, ordered=True, shared=True) == (18 + 60) / 2
    assert padded_tokens(pairs, 2, ordered=True, shared=True, update=2) == 60
