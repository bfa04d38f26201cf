"""Pairs: chosen and rejected are what the votes agree on, and a prompt's side is its own affair."""

import json
from pathlib import Path

import pytest

from nothing_gpt.preferences import JudgedSet, Pair, make_pairs, pair_row, read_judged
from nothing_gpt.records import write_jsonl
from nothing_gpt.verdicts import Verdict
from tests.samples import completion_set, prompt, verdict


def judged(text: str, *votes: Verdict, failed: str | None = None) -> JudgedSet:
    return JudgedSet(completion_set(text), list(votes) or [verdict(0, 2), verdict(0, 2)], failed)


def test_the_best_is_chosen_and_the_worst_rejected() -> None:
    pairs = make_pairs([judged("a", verdict(1, 2), verdict(1, 2, order=(2, 1, 0)))], val_ratio=1e-9, seed=1)
    assert pairs.train == [Pair(prompt("a"), "two", "three")]
    assert pairs.val == []


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (judged("a", verdict(0, 2), verdict(0, 1)), "votes disagree"),
        (judged("a", verdict(0, 2), verdict(0, 0, tie=True)), "tie"),
        (judged("a", failed="no usable verdict"), "not judged"),
    ],
)
def test_a_set_without_a_consensus_is_dropped_and_counted_by_its_reason(item: JudgedSet, reason: str) -> None:
    pairs = make_pairs([item, judged("b")], val_ratio=0.5, seed=1)
    assert pairs.drops == {reason: 1}
    assert len(pairs.train + pairs.val) == 1


def test_a_prompts_side_does_not_depend_on_the_other_prompts() -> None:
    many = [judged(str(number)) for number in range(200)]
    together = make_pairs(many, val_ratio=0.3, seed=1)
    alone = [bool(make_pairs([item], val_ratio=0.3, seed=1).val) for item in many]
    assert [item.item.prompt for item, val in zip(many, alone, strict=True) if val] == [
        pair.prompt for pair in together.val
    ]
    assert 40 < len(together.val) < 80
    assert make_pairs(many, val_ratio=0.3, seed=2).val != together.val


def test_a_pair_is_written_in_trls_conversational_format() -> None:
    assert pair_row(Pair(prompt("a"), "yes", "no")) == {
        "prompt": prompt("a").messages,
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }


def test_judged_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    item = completion_set("a")
    row = {"prompt": item.prompt.messages, "completions": item.completions, "truncated": item.truncated}
    vote = {"order": [2, 0, 1], "best": 2, "worst": 0, "tie": False, "reason": "r", "model": "m"}
    write_jsonl(tmp_path / "judged.jsonl", [row | {"votes": [json.loads(json.dumps(vote))]}, row | {"failed": "why"}])
    assert list(read_judged(tmp_path / "judged.jsonl")) == [
        JudgedSet(item, [Verdict((2, 0, 1), 2, 0, False, "r", "m")]),
        JudgedSet(item, [], "why"),
    ]
