"""Statistics: 95 % intervals for shares and means, as pure functions of plain numbers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

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
    """Mean of scores 1 (win), 1/2 (tie or split) and 0 (loss), one a prompt, with an interval that may be looked at
    after every prompt: over all looks together it misses the true mean at most 5 % of the time, 2.5 % on each side.

    It holds the means that the mixture of likelihood ratios does not refute (Robbins 1970; Howard et al. 2021, "Time-
    uniform, nonparametric, nonasymptotic confidence sequences", beta-binomial). A likelihood ratio is convex in the
    score, so that ties only make it smaller.

    Raises:
        ValueError: no scores.
    """
    n = len(scores)
    if n == 0:
        raise ValueError("no scores")
    wins = float(sum(scores))
    return Estimate(wins / n, _least_mean(wins, n - wins), 1 - _least_mean(n - wins, wins), n)


def _least_mean(wins: float, losses: float) -> float:
    """The smallest mean that so many wins and losses, at any time, do not refute."""
    if wins == 0:
        return 0.0
    threshold = math.log(2 / (1 - CONFIDENCE))

    def excess(mean: float) -> float:
        """Log of the evidence for a mean above this one, over what is needed: alternatives are uniform above it."""
        better = stats.beta.logsf(mean, wins + 1, losses + 1) + special.betaln(wins + 1, losses + 1) - math.log1p(-mean)
        return float(better - wins * math.log(mean) - losses * math.log1p(-mean)) - threshold

    # At the mean seen, all the evidence for a better one is of chance.
    bracket = (1e-12, min(wins / (wins + losses), 1 - 1e-9))
    return float(optimize.root_scalar(excess, bracket=bracket, method="brentq").root)


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
