"""The data report's figures, on data small enough to count by hand."""

import json
from collections import Counter

import pytest

from nothing_gpt.preferences import Pair
from nothing_gpt.quality import data_quality
from tests.samples import prompt, verdict


def test_the_judges_agreement_with_itself_and_its_liking_of_places_are_counted() -> None:
    agree = [verdict(0, 2, order=(0, 1, 2)), verdict(0, 2, order=(2, 1, 0))]
    disagree = [verdict(0, 2, order=(0, 1, 2)), verdict(2, 0, order=(2, 1, 0))]
    tie = [verdict(0, 2, order=(0, 1, 2)), verdict(0, 0, tie=True)]
    report = data_quality([], [agree, agree, disagree, tie], Counter({"tie": 1, "votes disagree": 1}))
    assert (report["judged_sets"], report["agreement"], report["tie_share"]) == (4, 0.5, 0.25)
    assert report["best_by_position"] == {"1": 5, "3": 2}
    assert report["drops"] == {"tie": 1, "votes disagree": 1}


def test_a_preference_for_length_is_measured_on_pairs_that_differ_in_it() -> None:
    pairs = [Pair(prompt(), "xx", "x")] * 8 + [Pair(prompt(), "x", "xxx")] * 2 + [Pair(prompt(), "x", "y")] * 5
    report = data_quality(pairs, [], Counter())
    assert (report["pairs"], report["longer_chosen"]) == (15, 0.8)
    assert report["longer_chosen_ci"] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert report["longer_chosen_p"] == pytest.approx(0.109375)
    assert report["length_gap"] == pytest.approx(4 / 15)


def test_the_lines_of_each_character_are_counted() -> None:
    pairs = [Pair(prompt(), "[JERRY] a\n[GEORGE] b [ELAINE]\n[JERRY] c", "no one")]
    report = data_quality(pairs, [], Counter())
    assert report["characters_chosen"] == {"JERRY": 2, "GEORGE": 1}
    assert report["characters_rejected"] == {}


def test_of_nothing_there_are_no_figures_and_no_error() -> None:
    report = data_quality([], [], Counter())
    assert (report["pairs"], report["agreement"], report["longer_chosen"], report["length_gap"]) == (
        0,
        None,
        None,
        None,
    )
    json.dumps(report, allow_nan=False)
