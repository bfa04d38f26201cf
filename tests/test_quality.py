"""The data report's figures, on data small enough to count by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nothing_gpt.config import JudgeSettings
from nothing_gpt.preferences import JudgedSet
from nothing_gpt.quality import MOST_LENGTHS, beyond_limits, measure
from nothing_gpt.records import CompletionSet
from nothing_gpt.verdicts import Verdict
from tests.samples import completion_set, prompt, verdict

FORTH, BACK = (0, 1, 2), (2, 1, 0)
AGREE = [verdict(0, 2, order=FORTH), verdict(0, 2, order=BACK)]
DISAGREE = [verdict(0, 2, order=FORTH), verdict(2, 0, order=BACK)]
TIE = [verdict(0, 0, tie=True, order=FORTH), verdict(0, 0, tie=True, order=BACK)]
GOOD = {"pairs": 50, "agreement": 0.5, "models_agreement": 0.5, "longer_chosen": 0.6}


def judged(*votes: Verdict, repeats: Sequence[Verdict] = (), failed: str | None = None) -> JudgedSet:
    return JudgedSet(completion_set(), list(votes), failed, list(repeats))


def pair(chosen: str, rejected: str, cut: Sequence[bool] = (False, False)) -> JudgedSet:
    return JudgedSet(CompletionSet(prompt(), [chosen, rejected], list(cut)), [verdict(0, 1, order=(0, 1))])


def by(model: str, votes: Sequence[Verdict]) -> list[Verdict]:
    return [replace(vote, model=model) for vote in votes]


def test_orders_agree_where_both_name_the_same_best_and_worst() -> None:
    report = measure([judged(*AGREE), judged(*AGREE), judged(*DISAGREE), judged(*TIE)])
    assert (report["judged_sets"], report["agreement"], report["tie_share"]) == (4, 0.5, 0.25)
    assert report["agreement_ci"] == pytest.approx([0.15, 0.85], abs=0.01)
    assert report["drops"] == {"tie": 1, "votes disagree": 1}


def test_the_rotations_of_three_votes_leave_the_agreement_between_orders_as_it_is() -> None:
    rotated = verdict(1, 2, order=(1, 2, 0))
    assert measure([judged(*AGREE, rotated), judged(*DISAGREE, rotated)])["agreement"] == 0.5


def test_one_order_tells_nothing_about_agreement() -> None:
    report = measure([judged(verdict(0, 2))])
    assert (report["pairs"], report["agreement"], report["agreement_ci"]) == (1, None, None)


def test_a_panels_models_are_measured_each_and_against_each_other() -> None:
    sets = [
        judged(*by("a", AGREE), *by("b", AGREE)),
        judged(*by("a", AGREE), *by("b", DISAGREE)),
        judged(*by("a", AGREE), *by("b", [replace(vote, best=1) for vote in AGREE])),
        judged(*by("a", TIE), *by("b", TIE)),
    ]
    report = measure(sets)
    assert report["agreement_by_model"] == {"a": 0.75, "b": 0.5}
    assert report["agreement"] == 0.625
    assert report["models_agreement"] == 0.25


def test_each_place_is_compared_with_what_it_would_win_by_chance() -> None:
    two = JudgedSet(CompletionSet(prompt(), ["a", "b"], [False] * 2), [verdict(0, 1, order=(0, 1))])
    report = measure([judged(*AGREE), judged(*AGREE), judged(*DISAGREE), judged(*TIE), two])
    assert report["best_by_position"] == {"1": 5, "2": 0, "3": 2}
    assert report["expected_by_position"] == {"1": 2.5, "2": 2.5, "3": 2}


@pytest.mark.parametrize(("wins", "p"), [((10, 10, 10), 1.0), ((16, 8, 6), 0.0608), ((5, 4, 3), None)])
def test_equal_chances_are_tested_by_chi_square_on_first_votes_where_there_are_enough(
    wins: tuple[int, int, int], p: float | None
) -> None:
    first = [verdict(best, (best + 1) % 3) for best, count in enumerate(wins) for _ in range(count)]
    report = measure(judged(vote, verdict(2, 0, order=BACK)) for vote in first)
    assert report["position_p"] == (None if p is None else pytest.approx(p, abs=1e-4))


def test_repeats_are_compared_with_the_vote_in_the_same_order() -> None:
    same, other, unasked = AGREE[1], replace(AGREE[0], best=1), verdict(0, 2, order=(1, 0, 2))
    report = measure(judged(*AGREE, repeats=[repeat]) for repeat in (same, other, unasked))
    assert (report["self_consistency"], report["repeats"]) == (0.5, 2)


def test_a_preference_for_length_is_measured_on_pairs_that_differ_in_it() -> None:
    report = measure([pair("xx", "x")] * 8 + [pair("x", "xxx")] * 2 + [pair("x", "y")] * 5)
    assert (report["pairs"], report["longer_chosen"]) == (15, 0.8)
    assert report["longer_chosen_ci"] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert report["longer_chosen_p"] == pytest.approx(0.109375)
    assert report["length_gap"] == pytest.approx(4 / 15)


def test_shares_of_cut_completions_are_counted_in_all_sets_and_on_both_sides_of_pairs() -> None:
    report = measure([pair("a", "b", (False, True)), pair("a", "b"), pair("a", "b", (True, False))])
    shares = [report[name] for name in ("truncated_completions", "truncated_chosen", "truncated_rejected")]
    assert shares == [pytest.approx(1 / 3), 0, 0.5]
    assert report["drops"] == {"chosen is cut": 1}


def test_the_lines_of_each_character_are_counted() -> None:
    report = measure([pair("[JERRY] a\n[GEORGE] b [ELAINE]\n[JERRY] c", "no one")])
    assert report["characters_chosen"] == {"JERRY": 2, "GEORGE": 1}
    assert report["characters_rejected"] == {}


def test_failures_and_degenerate_sets_of_all_stages_are_added_up() -> None:
    report = measure(
        [pair("a", "b"), pair("a", "a"), judged(failed="why")],
        {"degenerate": 2, "failed": 3, "usage": {"prompt_tokens": 7, "completion_tokens": 8, "calls": 1}},
        {"usage": {"prompt_tokens": 1, "completion_tokens": 2, "cost_usd": 0.5, "latency_p50_s": 0.123}},
    )
    assert (report["failures"], report["degenerate"], report["sets"]) == (4, 3, 3)
    assert report["drops"] == {"both sides are equal": 1, "degenerate": 2, "not judged": 1, "not sampled": 3}
    assert report["usage"] == {
        "generate": {"prompt_tokens": 7, "completion_tokens": 8, "cost_usd": None},
        "judge": {"prompt_tokens": 1, "completion_tokens": 2, "cost_usd": 0.5},
    }


def test_without_the_judges_own_count_the_votes_tokens_are_added_up() -> None:
    vote = replace(AGREE[0], prompt_tokens=100, completion_tokens=20)
    usage = measure([judged(vote, vote, repeats=[vote])])["usage"]
    assert usage == {"judge": {"prompt_tokens": 300, "completion_tokens": 60, "cost_usd": None}}


def test_of_very_many_pairs_only_some_lengths_are_kept_for_the_plots() -> None:
    report = measure(pair("x" * (number % 7 + 2), "y") for number in range(2 * MOST_LENGTHS + 1))
    assert MOST_LENGTHS / 2 < len(report["chosen_lengths"]) == len(report["rejected_lengths"]) <= MOST_LENGTHS
    assert report["longer_chosen"] == 1


def test_of_nothing_there_are_no_figures_and_no_error() -> None:
    report = measure([])
    assert report["pairs"] == 0
    assert [report[name] for name in ("agreement", "longer_chosen", "length_gap", "position_p")] == [None] * 4
    json.dumps(report, allow_nan=False)


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 4, st.booleans(), st.booleans()), max_size=30))
def test_whatever_the_votes_every_figure_is_a_share_and_every_set_a_pair_or_a_drop(drawn: list[Any]) -> None:
    sets = [
        judged(verdict(best, worst, tie, FORTH), verdict(best2, worst2, tie2, BACK))
        for best, worst, best2, worst2, tie, tie2 in drawn
        if (best != worst or tie) and (best2 != worst2 or tie2)
    ]
    report = measure(sets)
    assert report["pairs"] + sum(report["drops"].values()) == report["sets"] == len(sets)
    for name, value in report.items():
        if name.endswith("_p") or name in ("agreement", "tie_share", "longer_chosen"):
            assert value is None or (isinstance(value, float) and 0 <= value <= 1)
    assert sum(report["best_by_position"].values()) == pytest.approx(sum(report["expected_by_position"].values()))
    if report["agreement"] is not None:
        assert report["agreement"] * len(sets) == pytest.approx(report["pairs"])


def test_data_within_every_limit_need_no_warning() -> None:
    assert beyond_limits(GOOD, JudgeSettings()) == []
    unknown = {"pairs": 50, "agreement": None, "models_agreement": None, "longer_chosen": None}
    assert beyond_limits(unknown, JudgeSettings()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"agreement": 0.496}, "judge.min_agreement: the judge's orders agree on 49.6% of the sets, below"),
        ({"models_agreement": 0.2}, "judge.min_agreement: the judge's models agree on 20.0% of the sets, below"),
        ({"longer_chosen": 0.604}, "judge.max_longer_chosen: the longer completion is chosen in 60.4% of the pairs"),
        ({"pairs": 49}, "judge.min_pairs: 49 pairs, fewer than the limit of 50"),
    ],
)
def test_each_limit_that_is_not_kept_is_one_clear_sentence(change: dict[str, Any], sentence: str) -> None:
    (said,) = beyond_limits(GOOD | change, JudgeSettings())
    assert said.startswith(sentence)
    assert "\n" not in said
