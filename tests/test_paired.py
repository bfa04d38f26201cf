"""Whether two candidates differ, on the same units."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nothing_gpt.paired import holm, sequential_sign_test, sign_test


def outcomes(better: int, worse: int, alike: int) -> tuple[dict[int, float], dict[int, float]]:
    values = [(1.0, 0.0)] * better + [(0.0, 1.0)] * worse + [(0.5, 0.5)] * alike
    return {n: first for n, (first, _) in enumerate(values)}, {n: second for n, (_, second) in enumerate(values)}


def test_only_units_on_which_the_two_differ_count() -> None:
    found = sign_test(*outcomes(9, 1, 200))
    assert (found.n, found.better, found.worse) == (210, 9, 1)
    assert found.p == pytest.approx(2 * (1 + 10) / 2**10)


def test_units_that_one_of_them_lacks_are_left_out() -> None:
    assert sign_test({1: 1, 2: 1}, {2: 0, 3: 0}) == (1, 1, 0, 1.0)


@pytest.mark.parametrize("test", [sign_test, sequential_sign_test])
def test_without_a_difference_nothing_is_said(test: type[object]) -> None:
    assert test(*outcomes(0, 0, 30)).p == 1  # type: ignore[attr-defined]
    assert test({}, {}).p == 1  # type: ignore[attr-defined]


def test_the_sequential_test_is_one_over_the_mixtures_likelihood_ratio() -> None:
    # All chances from 0 to 1 alike likely: 10 of 10 have the mean likelihood 1/11, an even chance 1/1024.
    assert sequential_sign_test(*outcomes(10, 0, 5)).p == pytest.approx(11 / 1024)


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_sequential_test_is_the_more_careful_one(better: int, worse: int) -> None:
    assert sequential_sign_test(*outcomes(better, worse, 0)).p >= min(1.0, sign_test(*outcomes(better, worse, 0)).p / 2)


def test_looked_at_after_every_unit_the_sequential_test_seldom_errs() -> None:
    """Exactly, by all ways that 60 even tosses can go: the chance to be below 0.05 at any time is at most 0.05, while
    the exact test's, which is for one look, is three times as much or more."""
    erring = {}
    for test in (sign_test, sequential_sign_test):
        chances, gone = {0: 1.0}, 0.0
        for n in range(1, 61):
            following: dict[int, float] = {}
            for wins, chance in chances.items():
                for more in (0, 1):
                    following[wins + more] = following.get(wins + more, 0.0) + chance / 2
            over = [wins for wins in following if test(*outcomes(wins, n - wins, 0)).p < 0.05]
            gone += sum(following.pop(wins) for wins in over)
            chances = following
        erring[test] = gone
    assert erring[sequential_sign_test] <= 0.05
    assert erring[sign_test] > 0.15


def test_holm_raises_p_values_by_how_many_there_are() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_over_many_comparisons_of_nothing_holm_errs_as_seldom_as_over_one() -> None:
    even = [
        float(stats.binomtest(k, 20).pvalue) for k in range(21) for _ in range(round(math.comb(20, k) / 2**20 * 400))
    ]
    assert min(even) < 0.05
    assert min(holm(even)) > 0.05
