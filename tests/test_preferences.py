"""Pairs: chosen and rejected are what the votes agree on, and a prompt's side is its own affair."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nothing_gpt.config import JudgeSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.preferences import (
    CUT,
    DEGENERATE,
    EMPTY,
    EQUAL,
    NOT_JUDGED,
    TRAIN,
    VAL,
    JudgedSet,
    Pair,
    Split,
    pair_of,
    pair_row,
    read_judged,
    sample_pairs,
    side,
    write_pairs,
)
from nothing_gpt.records import CompletionSet, read_jsonl, write_jsonl
from nothing_gpt.verdicts import Verdict
from tests.samples import completion_set, prompt, verdict

NOT_OURS = "not a set that the judge wrote"
SETTINGS = JudgeSettings(val_ratio=0.3, seed=1)


def judged(text: str, *votes: Verdict, failed: str | None = None) -> JudgedSet:
    return JudgedSet(completion_set(text), list(votes) or [verdict(0, 2), verdict(0, 2)], failed)


def judged_as(texts: list[str], cut: list[bool], best: int, worst: int) -> JudgedSet:
    order = tuple(range(len(texts)))
    return JudgedSet(CompletionSet(prompt(), texts, cut), [verdict(best, worst, order=order)] * 2)


def test_the_best_is_chosen_and_the_worst_rejected() -> None:
    votes = verdict(1, 2), verdict(1, 2, order=(2, 1, 0))
    assert pair_of(judged("a", *votes)) == Pair(prompt("a"), "two", "three", 1, 2)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (judged("a", verdict(0, 2), verdict(0, 1)), "votes disagree"),
        (judged("a", verdict(0, 0, tie=True), verdict(0, 0, tie=True)), "tie"),
        (judged("a", failed="no usable verdict"), NOT_JUDGED),
        (JudgedSet(completion_set("a"), []), NOT_JUDGED),
        (JudgedSet(completion_set("a", ["same", "same"]), [], "fewer than two distinct completions"), DEGENERATE),
        (judged_as(["one", " one\n"], [False, False], 0, 1), EQUAL),
        (judged_as(["one", " \n"], [False, False], 0, 1), EMPTY),
    ],
)
def test_a_set_that_makes_no_pair_says_why(item: JudgedSet, reason: str) -> None:
    assert pair_of(item) == reason


@pytest.mark.parametrize(
    ("chosen_cut", "rejected_cut", "kept"),
    [(True, False, False), (False, True, True), (True, True, True), (False, False, True)],
)
def test_a_cut_completion_is_never_chosen_over_a_whole_one(chosen_cut: bool, rejected_cut: bool, kept: bool) -> None:
    outcome = pair_of(judged_as(["good", "bad"], [chosen_cut, rejected_cut], 0, 1))
    assert isinstance(outcome, Pair) if kept else outcome == CUT


@given(
    texts=st.lists(st.sampled_from(["", " ", "x", "x ", "y", "long"]), min_size=2, max_size=4),
    data=st.data(),
)
def test_whatever_is_judged_no_pair_is_equal_or_empty_or_prefers_a_cut_text(texts: list[str], data: Any) -> None:
    cut = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    order = tuple(range(len(texts)))
    places = st.sampled_from(order)
    votes = data.draw(
        st.lists(st.builds(verdict, places, places, st.booleans(), st.permutations(order).map(tuple)), max_size=3)
    )
    outcome = pair_of(JudgedSet(CompletionSet(prompt(), texts, cut), votes))
    if isinstance(outcome, Pair):
        assert outcome.chosen.strip()
        assert outcome.rejected.strip()
        assert outcome.chosen.strip() != outcome.rejected.strip()
        assert (cut[outcome.best], cut[outcome.worst]) != (True, False)
        assert (texts[outcome.best], texts[outcome.worst]) == (outcome.chosen, outcome.rejected)


def test_a_prompts_side_does_not_depend_on_the_other_prompts(tmp_path: Path) -> None:
    many = [judged(str(number)) for number in range(200)]
    split = write_pairs(many, tmp_path, SETTINGS)
    assert split.train + split.val == 200
    assert 40 < split.val < 80
    for name in (TRAIN, VAL):
        written = [row["prompt"] for _, row in read_jsonl(tmp_path / name)]
        assert written == [item.item.prompt.messages for item in many if side(item.item.prompt, SETTINGS) == name]
    other = SETTINGS.model_copy(update={"seed": 2})
    assert any(side(item.item.prompt, SETTINGS) != side(item.item.prompt, other) for item in many)


def test_dropped_sets_are_counted_by_reason_and_no_half_file_stays(tmp_path: Path) -> None:
    sets = [judged("a"), judged("b", failed="why"), judged("c", verdict(0, 2), verdict(2, 0)), judged("d", failed="no")]
    split = write_pairs(sets, tmp_path, SETTINGS)
    assert split == Split(split.train, 1 - split.train, {NOT_JUDGED: 2, "votes disagree": 1})
    assert sorted(file.name for file in tmp_path.iterdir()) == [TRAIN, VAL]


def test_two_runs_that_write_into_one_folder_do_not_meet(tmp_path: Path) -> None:
    def meanwhile() -> Iterator[JudgedSet]:
        yield judged("a")
        assert write_pairs([judged("a")], tmp_path, SETTINGS) == first
        yield judged("b")

    first = write_pairs([judged("a")], tmp_path, SETTINGS)
    write_pairs(meanwhile(), tmp_path, SETTINGS)
    assert sum(1 for name in (TRAIN, VAL) for _ in read_jsonl(tmp_path / name)) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == [TRAIN, VAL]


def test_a_pair_is_written_in_trls_conversational_format() -> None:
    assert pair_row(Pair(prompt("a"), "yes", "no", 0, 1)) == {
        "prompt": prompt("a").messages,
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }


def test_a_sample_of_pairs_is_the_seeds_and_says_which_numbers_the_reasons_speak_of() -> None:
    many = [judged(str(number), verdict(0, 2, order=(2, 1, 0))) for number in range(40)]
    sample = sample_pairs(iter([*many, judged("dropped", failed="why")]), 5, seed=1)
    assert len(sample) == 5
    assert sample[0]["reasons"] == ["judge, shown chosen as 3 and rejected as 1: because"]
    assert sample == sample_pairs(reversed(many), 5, seed=1)
    assert sample != sample_pairs(many, 5, seed=2)
    assert len(sample_pairs(many, 50, seed=1)) == 40


def test_judged_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    item, vote = completion_set("a"), Verdict((2, 0, 1), 2, 0, False, "r", "m", "stop", 10, 5)
    row = {"prompt": item.prompt.messages, "completions": item.completions, "truncated": item.truncated}
    votes = [json.loads(json.dumps(asdict(vote)))]
    kinds = {"votes": votes, "repeats": votes}, {"votes": votes}, {"failed": "why"}
    write_jsonl(tmp_path / "judged.jsonl", [row | kind for kind in kinds])
    assert list(read_judged(tmp_path / "judged.jsonl")) == [
        JudgedSet(item, [vote], None, [vote]),
        JudgedSet(item, [vote]),
        JudgedSet(item, [], "why"),
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"completions": None}, 'no "completions"'),
        ({"completions": [1, 2, 3]}, 'no "completions"'),
        ({"completions": ["a", "b", "c \ud83d"]}, "half a character"),
        ({"truncated": [True]}, '"truncated" must be a list'),
        ({"votes": 3}, NOT_OURS),
        ({"votes": [asdict(verdict(0, 1)) | {"reason": None}]}, NOT_OURS),
        ({"votes": [{"best": 0, "worst": 1}]}, NOT_OURS),
        ({"votes": [asdict(verdict(0, 3))]}, NOT_OURS),
        ({"votes": [asdict(verdict(1, 1))]}, NOT_OURS),
        ({"votes": [asdict(verdict(0, 1, order=(0, 1, 7)))]}, NOT_OURS),
        ({"votes": [asdict(verdict(0, 1, order=(0, 1, 1)))]}, NOT_OURS),
    ],
)
def test_a_row_that_the_judge_did_not_write_is_one_clear_line(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    row = {"prompt": prompt().messages, "completions": ["a", "b", "c"], "votes": []} | change
    (tmp_path / "judged.jsonl").write_text(json.dumps(row))
    with pytest.raises(FatalError, match=rf"judged.jsonl, line 1: {problem}"):
        list(read_judged(tmp_path / "judged.jsonl"))
