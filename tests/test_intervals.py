"""Intervals: textbook values, and that they cover at least as often as they say."""

import functools
from bisect import bisect_left
from itertools import pairwise

import numpy as np
import pytest

from nothing_gpt.intervals import bootstrap_mean, wilson, win_rate

TIES = [0.0, 0.3, 0.7]


def scores(halves: int, n: int) -> list[float]:
    """n scores whose sum is so many halves."""
    return [1.0] * (halves // 2) + [0.5] * (halves % 2) + [0.0] * (n - halves // 2 - halves % 2)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
    ],
)  # the last two: Newcombe 1998, table I
def test_wilsons_interval_has_the_textbook_values(successes: int, n: int, low: float, high: float) -> None:
    estimate = wilson(successes, n)
    assert (estimate.value, estimate.n) == (successes / n, n)
    assert estimate[1:3] == pytest.approx((low, high), abs=5e-5)


def test_a_win_rate_holds_the_means_that_the_evidence_does_not_refute() -> None:
    """At the lower bound the mean likelihood ratio of all better means is 40, by plain numerical integration."""
    low = win_rate([1.0] * 45 + [0.5] * 4 + [0.0] * 15).low
    better = np.linspace(low, 1, 200_001)[1:-1]
    evidence = np.exp(47 * np.log(better / low) + 17 * np.log((1 - better) / (1 - low)))
    assert evidence.mean() == pytest.approx(40, rel=1e-3)


def test_half_a_success_lies_between_none_and_one() -> None:
    bounds = [win_rate(scores(halves, 40)) for halves in range(81)]
    assert all(a.low <= b.low and a.high < b.high + 1e-12 and a.value < b.value for a, b in pairwise(bounds))
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in bounds)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("every", [1, 32])
def test_equal_adapters_ever_show_a_lower_bound_above_one_half_at_most_once_in_forty(ties: float, every: int) -> None:
    """Exact, not simulated: however often it is looked at, up to 256 prompts."""
    sums, ever = np.ones(1), 0.0
    for n in range(1, 257):
        sums = np.convolve(sums, [(1 - ties) / 2, ties, (1 - ties) / 2])
        if n % every == 0:
            least = least_that_passes(n)
            ever += sums[least:].sum()
            sums[least:] = 0
    assert 0 < ever <= 0.025


@functools.cache
def least_that_passes(n: int) -> int:
    """The smallest sum of n scores (in halves) whose lower bound is above one half."""
    return bisect_left(range(2 * n + 1), True, key=lambda halves: win_rate(scores(halves, n)).low > 0.5)


def test_a_clearly_better_adapter_shows_it() -> None:
    assert win_rate([1.0] * 50 + [0.5] * 8 + [0.0] * 6).low > 0.5


def test_all_wins_and_all_losses_keep_their_bounds_within_0_and_1() -> None:
    assert (win_rate([1.0] * 64).high, win_rate([0.0] * 64).low) == (1.0, 0.0)
    assert win_rate([1.0]).low > 0


def test_a_bootstrap_interval_is_near_the_normal_one_and_the_same_each_time() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, 400).tolist()
    estimate = bootstrap_mean(values)
    half_width = 1.96 * np.std(values) / 20
    assert estimate.low == pytest.approx(estimate.value - half_width, abs=0.03)
    assert estimate.high == pytest.approx(estimate.value + half_width, abs=0.03)
    assert bootstrap_mean(values) == estimate


def test_values_that_are_all_the_same_have_a_point_for_an_interval() -> None:
    assert bootstrap_mean([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0, 3)


def test_nothing_has_no_interval() -> None:
    for estimate in (lambda: wilson(0, 0), lambda: win_rate([]), lambda: bootstrap_mean([])):
        with pytest.raises(ValueError, match="no "):
            estimate()
