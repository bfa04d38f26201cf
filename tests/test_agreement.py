"""Agreement with people: kappa as in the literature, and labels that find their set whatever its order."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nothing_gpt.agreement import agreement_with_people, cohens_kappa, read_labels
from nothing_gpt.errors import FatalError
from nothing_gpt.preferences import JudgedSet
from nothing_gpt.records import write_jsonl
from tests.samples import completion_set, prompt, verdict

TEXTS = ["one", "two", "three"]
ratings = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60)


def table(rows: list[list[int]]) -> list[tuple[int, int]]:
    """The ratings that a table of counts stands for: one rater's categories down, the other's across."""
    return [(a, b) for a, row in enumerate(rows) for b, count in enumerate(row) for _ in range(count)]


def label(text: str = "a", **change: Any) -> dict[str, Any]:
    return {"prompt": prompt(text).messages, "completions": TEXTS, "best": 0, "worst": 2} | change


def judged(text: str, best: int, worst: int) -> JudgedSet:
    return JudgedSet(completion_set(text), [verdict(best, worst)] * 2)


def test_cohens_own_example() -> None:
    # Cohen 1960, table 1: two psychologists, 200 patients, p_o = .70, p_e = .41.
    kappa = cohens_kappa(table([[88, 10, 2], [14, 40, 6], [18, 10, 12]]))
    assert kappa is not None
    assert kappa.value == pytest.approx(0.29 / 0.59)
    assert (kappa.low, kappa.high, kappa.n) == (pytest.approx(0.377, abs=5e-3), pytest.approx(0.594, abs=5e-3), 200)


def test_two_categories_by_hand() -> None:
    # p_o = 35/50; the marginals 25:25 and 30:20 give p_e = 1/2.
    kappa = cohens_kappa(table([[20, 5], [10, 15]]))
    assert kappa is not None
    assert kappa.value == pytest.approx(0.4)


def test_full_agreement_is_one_with_an_interval_below_it_and_full_disagreement_is_minus_one() -> None:
    same, opposite = cohens_kappa([(0, 0), (1, 1)] * 10), cohens_kappa([(0, 1), (1, 0)] * 10)
    assert same is not None
    assert opposite is not None
    assert (same.value, same.high) == (1, pytest.approx(1))
    assert 0.5 < same.low < 1
    assert (opposite.value, opposite.low) == (-1, -1)


@pytest.mark.parametrize("rated", [[], [(1, 1)] * 5])
def test_where_chance_explains_everything_there_is_no_kappa(rated: list[tuple[int, int]]) -> None:
    assert cohens_kappa(rated) is None


@given(ratings)
def test_kappa_keeps_its_bounds_and_does_not_mind_who_is_who(rated: list[tuple[int, int]]) -> None:
    kappa = cohens_kappa(rated)
    assert kappa == cohens_kappa([(b, a) for a, b in rated])
    if kappa is not None:
        assert -1 - 1e-9 <= kappa.low - 1e-9 <= kappa.value <= kappa.high + 1e-9 <= 1 + 1e-8


@given(ratings, st.permutations(range(4)))
def test_kappa_does_not_mind_what_the_categories_are_called(rated: list[tuple[int, int]], names: list[int]) -> None:
    kappa, renamed = cohens_kappa(rated), cohens_kappa([(names[a], names[b]) for a, b in rated])
    assert (kappa and kappa.value) == (renamed and pytest.approx(renamed.value))


def test_a_label_finds_its_set_by_prompt_and_texts_whatever_their_order(tmp_path: Path) -> None:
    shuffled = label("a", completions=["three", "one", "two"], best=1, worst=0)
    write_jsonl(tmp_path / "human.jsonl", [shuffled, label("b", best=1), label("c", completions=["x", "y"], worst=1)])
    sets = [judged("a", 0, 2), judged("b", 0, 2), judged("c", 0, 2), judged("not labelled", 0, 1)]
    people = agreement_with_people(iter(sets), read_labels(tmp_path / "human.jsonl"))
    assert (people["labels"], people["matched"], people["ranked"]) == (3, 2, 2)
    assert people["kappa_best"] == 0  # of "one" twice, the person says "one" and "two": as often as by chance
    assert people["kappa_worst"] is None  # both always say "three"


def test_a_label_on_texts_that_were_there_twice_finds_the_set_of_the_distinct_ones(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "human.jsonl", [label("a", completions=[*TEXTS, "one"], best=3)])
    assert agreement_with_people([judged("a", 0, 2)], read_labels(tmp_path / "human.jsonl"))["matched"] == 1


def test_sets_on_which_the_judge_agrees_with_nobody_not_even_itself_are_counted_apart(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "human.jsonl", [label("a"), label("b", best=1, worst=0)])
    split = JudgedSet(completion_set("a"), [verdict(0, 2), verdict(2, 0)])
    people = agreement_with_people([split, judged("b", 1, 0)], read_labels(tmp_path / "human.jsonl"))
    assert (people["matched"], people["ranked"]) == (2, 1)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([], "holds no labels"),
        ([{"completions": TEXTS}], 'line 1: no "prompt"'),
        ([label(completions="one")], 'line 1: no "completions"'),
        ([label(completions=["one"])], 'line 1: no "completions"'),
        ([label(completions=["one", "tw\ud83d"], worst=1)], "line 1: half a character"),
        ([label(best=3)], '"best" and "worst" must be whole numbers from 0 to 2'),
        ([label(worst=-1)], '"best" and "worst" must be whole numbers from 0 to 2'),
        ([label(best=True)], '"best" and "worst" must be whole numbers from 0 to 2'),
        ([label(best="0")], '"best" and "worst" must be whole numbers from 0 to 2'),
        ([label(worst=0)], '"best" and "worst" name the same text'),
        ([label(), label(completions=TEXTS[::-1])], "line 2: this set is labelled further up already"),
    ],
)
def test_a_file_that_holds_no_labels_is_one_clear_line(tmp_path: Path, rows: list[Any], line: str) -> None:
    (tmp_path / "human.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(FatalError, match=line) as raised:
        read_labels(tmp_path / "human.jsonl")
    assert "human.jsonl" in str(raised.value)
    assert "\n" not in str(raised.value)
