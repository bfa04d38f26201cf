"""Pairs in batches: the shared prompt gives what two full sequences give, and an update keeps its pairs."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nothing_gpt.pair_batches import PairRows, SortedUpdates, share_prompts

PAIRS = [([5, 6, 7, 8], [9, 10], [11, 12, 13, 14]), ([5, 6], [9, 9, 9], [9, 4]), ([3], [4, 5, 6, 7, 8, 9], [10])]
"""Prompt, chosen and rejected; in the second pair the two sides begin alike."""


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask as TRL collates them: chosen sides, then rejected ones, padded on the right."""
    sequences = [prompt + chosen for prompt, chosen, _ in PAIRS] + [prompt + rejected for prompt, _, rejected in PAIRS]
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
    mask = torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences])
    return ids, mask


def tiny_llama(attention: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,  # as usual, attention hardly matters in a model that is so small
        )
    )
    model.set_attn_implementation(attention)
    return model.eval()


def test_a_pair_is_one_row_with_its_prompt_once() -> None:
    rows = PairRows.of(*batch())
    assert rows.tokens.shape == (3, 10)
    assert rows.tokens[0].tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert rows.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert rows.tokens[1, :6].tolist() == [5, 6, 9, 9, 9, 4], "what both sides begin with is there once, too"


def test_every_token_sees_its_own_sequence_and_nothing_else() -> None:
    seen = PairRows.of(*batch()).visible[0, 0]
    assert seen[5].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5], "the chosen side's last token"
    assert seen[7].nonzero().flatten().tolist() == [0, 1, 2, 3, 6, 7], "the rejected side's second"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_hidden_states_and_gradients_are_those_of_two_full_sequences(attention: str) -> None:
    ids, mask = batch()
    plain, sharing = tiny_llama(attention), tiny_llama(attention)
    share_prompts(sharing)
    weights = torch.randn(*ids.shape, 32) * mask[..., None]
    for model in (plain, sharing):
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        (hidden * weights).sum().backward()
        model.kept = hidden.detach() * mask[..., None]
    torch.testing.assert_close(sharing.kept, plain.kept, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(sharing.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("attention", "rows"), [("sdpa", 3), ("eager", 6)])
def test_prompts_are_shared_only_where_attention_obeys_the_mask(attention: str, rows: int) -> None:
    ids, mask = batch()
    model, seen = tiny_llama(attention), []
    model.model.embed_tokens.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    share_prompts(model)
    model.model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert seen == [rows]


def test_a_batch_of_equal_sides_is_half_as_large() -> None:
    ids = torch.tensor([[1, 2, 3], [1, 2, 3]])
    assert PairRows.of(ids, torch.ones_like(ids)).tokens.tolist() == [[1, 2, 3]]


def test_updates_hold_random_pairs_and_are_sorted_within() -> None:
    lengths = [(7 * number) % 23 for number in range(20)]
    sampler = SortedUpdates(lengths, pairs_an_update=8, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(20))
    for update in (order[:8], order[8:16], order[16:]):
        assert [lengths[index] for index in update] == sorted((lengths[index] for index in update), reverse=True)
    expected = torch.randperm(20, generator=torch.Generator().manual_seed(3)).tolist()
    assert set(order[:8]) == set(expected[:8]), "the pairs of an update are those of the unsorted order"


def test_the_order_follows_from_seed_and_epoch() -> None:
    sampler, again = SortedUpdates(range(20), 4, seed=1), SortedUpdates(range(20), 4, seed=1)
    first = list(sampler)
    assert list(again) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
