"""How answers look: their length, their form, how often they repeat themselves."""

import pytest

from nothing_gpt.behaviour import behaviour


def test_lengths_are_the_mean_of_the_answers_that_there_are() -> None:
    figures = behaviour(["[A] ab", "[A] abcd", "", "  "])
    assert (figures["answers"], figures["length"]) == (2, 7.0)


def test_a_line_is_in_form_with_a_name_in_brackets_and_something_said() -> None:
    figures = behaviour(["[ANNA] yes\n\n  [BEN] no", "[ANNA]\nhe leaves"])
    assert figures["in_form"] == 0.5


@pytest.mark.parametrize(
    ("answer", "share"),
    [("a b c d e f g h", 0.0), ("a b c d a b c d", 0.2), ("no no no no no no no", 0.75), ("too short here", 0.0)],
)
def test_repetition_is_the_share_of_4_grams_seen_before(answer: str, share: float) -> None:
    assert behaviour([answer])["repetition"] == pytest.approx(share)


def test_what_two_answers_share_is_no_repetition() -> None:
    assert behaviour(["a b c d", "a b c d"])["repetition"] == 0


def test_of_no_answers_every_figure_is_nothing() -> None:
    assert behaviour(["", ""]) == {"answers": 0, "length": 0, "in_form": 0, "repetition": 0}
