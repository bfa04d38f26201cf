"""Statistics: 95 % intervals for shares and means, as pure functions of plain numbers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A value, its two-sided 95 % interval, and the number of units it rests on."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int) -> Estimate:
    """Share of successes in n trials with Wilson's score interval (Wilson 1927).

    Raises:
        ValueError: n is 0.
    """
    if n == 0:
        raise ValueError("no trials")
    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


def win_rate(scores: Sequence[float]) -> Estimate:
    """Mean of scores 1 (win), 1/2 (tie or split) and 0 (loss), one a prompt, with the exact binomial interval
    (Clopper and Pearson 1934) continued to half successes.

    Ties only narrow the spread of such a mean, so the interval covers at least as often as it says; that equal
    adapters pass a bound of 1/2 at most 2.5 % of the time is simulated in the tests.

    Raises:
        ValueError: no scores.
    """
    n = len(scores)
    if n == 0:
        raise ValueError("no scores")
    wins, tail = float(sum(scores)), (1 - CONFIDENCE) / 2
    low = float(stats.beta.ppf(tail, wins, n - wins + 1)) if wins > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, wins + 1, n - wins)) if wins < n else 1.0
    return Estimate(wins / n, low, high, n)


def bootstrap_mean(values: Sequence[float], seed: int = 0, resamples: int = 10_000) -> Estimate:
    """Mean with a percentile bootstrap interval over the units (Efron 1979).

    Raises:
        ValueError: no values.
    """
    if len(values) == 0:
        raise ValueError("no values")
    array = np.asarray(values, dtype=np.float64)
    if np.ptp(array) == 0:
        return Estimate(float(array[0]), float(array[0]), float(array[0]), len(array))
    interval = stats.bootstrap(
        (array,), np.mean, confidence_level=CONFIDENCE, n_resamples=resamples, batch=200, method="percentile", rng=seed
    ).confidence_interval
    return Estimate(float(array.mean()), float(interval.low), float(interval.high), len(array))
