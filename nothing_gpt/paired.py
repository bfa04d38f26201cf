"""Whether two candidates really differ, from what both did on the same units: pure functions of plain data.

Units on which both did equally well say nothing about the difference and are left out, as in every sign test.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import special, stats

Unit = TypeVar("Unit", bound=Hashable)


class Paired(NamedTuple):
    """On how many of `n` common units the first did better and the second did, and how likely a split at least as
    uneven is where neither is better (`p`, two-sided)."""

    n: int
    better: int
    worse: int
    p: float


def sign_test(first: Mapping[Unit, float], second: Mapping[Unit, float]) -> Paired:
    """The exact sign test, which for outcomes 0 and 1 is McNemar's (1947). For a number of units that was set before
    any was looked at."""
    n, better, worse = _split(first, second)
    p = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    return Paired(n, better, worse, float(p))


def sequential_sign_test(first: Mapping[Unit, float], second: Mapping[Unit, float]) -> Paired:
    """The sign test for units that were added one after another, and no longer than the results seemed undecided: `p`
    may be looked at after every unit (Ville's inequality).

    It is one over the likelihood ratio of the mixture of all chances to an even one (Robbins 1970), the mixture that
    `intervals.win_rate` uses too.
    """
    n, better, worse = _split(first, second)
    evidence = special.betaln(better + 1, worse + 1) + (better + worse) * np.log(2)
    return Paired(n, better, worse, float(min(1.0, np.exp(-evidence))))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, each raised so that over all of them together one errs as rarely as over a single one (Holm 1979).
    In their order."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    raised = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors))
    return [float(value) for value in raised[np.argsort(order, kind="stable")]]


def _split(first: Mapping[Unit, float], second: Mapping[Unit, float]) -> tuple[int, int, int]:
    common = first.keys() & second.keys()
    better = sum(first[unit] > second[unit] for unit in common)
    worse = sum(first[unit] < second[unit] for unit in common)
    return len(common), better, worse
