"""Stage 3: the pairs' files and the data report, and what happens where too little is left."""

import json
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import JudgeSettings
from nothing_gpt.dpo.pairs import QUALITY, TRAIN, VAL, pairs
from nothing_gpt.errors import FatalError
from nothing_gpt.records import read_jsonl, write_jsonl
from tests.samples import prompt

SETTINGS = JudgeSettings(val_ratio=0.3)
Votes = list[tuple[int, int]]


def given(workshop: Workshop, ballots: list[Votes]) -> tuple[Artifact, Artifact]:
    def completions(folder: Path) -> dict[str, int]:
        (folder / "completions.jsonl").write_text("")
        return {"degenerate": 2, "failed": 1}

    def judged(folder: Path) -> dict[str, int]:
        write_jsonl(
            folder / "judged.jsonl",
            (
                {
                    "prompt": prompt(str(number)).messages,
                    "completions": ["zero", "one", "two"],
                    "truncated": [False] * 3,
                    "votes": [
                        {"order": [0, 1, 2], "best": best, "worst": worst, "tie": False, "reason": "", "model": "m"}
                        for best, worst in votes
                    ],
                }
                for number, votes in enumerate(ballots)
            ),
        )
        return {}

    first = workshop.make(Stage("completions", 1), {}, {}, completions)
    return first, workshop.make(Stage("verdicts", 1), {"ballots": ballots}, {}, judged)


def rows(workshop: Workshop, made: Artifact, name: str) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(workshop.file(made, name))]


def test_agreed_sets_become_pairs_on_two_sides(workshop: Workshop) -> None:
    made = pairs(workshop, *given(workshop, [[(1, 2), (1, 2)]] * 40), SETTINGS)
    train, val = rows(workshop, made, TRAIN), rows(workshop, made, VAL)
    assert len(train) + len(val) == 40
    assert len(val) > 3
    assert train[0]["chosen"] == [{"role": "assistant", "content": "one"}]
    assert train[0]["rejected"] == [{"role": "assistant", "content": "two"}]
    assert workshop.counts(made) == {"rows": 40, "train": len(train), "val": len(val)}


def test_the_report_counts_what_was_dropped_in_every_stage(workshop: Workshop) -> None:
    made = pairs(workshop, *given(workshop, [[(1, 2), (1, 2)]] * 30 + [[(1, 2), (0, 2)]] * 10), SETTINGS)
    quality = json.loads(workshop.file(made, QUALITY).read_text())
    assert quality["drops"] == {"degenerate": 2, "failed": 1, "votes disagree": 10}
    assert (quality["pairs"], quality["agreement"]) == (30, 0.75)


@pytest.mark.parametrize("ballots", [[], [[(1, 2), (2, 1)]] * 20])
def test_a_judge_that_agrees_on_nothing_stops_the_run(workshop: Workshop, ballots: list[Votes]) -> None:
    with pytest.raises(FatalError, match=r"pairs: no pair is left of \d+ judged sets \(dropped: .*degenerate"):
        pairs(workshop, *given(workshop, ballots), SETTINGS)


def test_only_the_split_is_a_setting(workshop: Workshop) -> None:
    inputs = given(workshop, [[(1, 2), (1, 2)]] * 40)
    pairs(workshop, *inputs, SETTINGS)
    assert pairs(workshop, *inputs, SETTINGS.model_copy(update={"concurrency": 1, "max_tokens": 99})).reused
    assert not pairs(workshop, *inputs, SETTINGS.model_copy(update={"val_ratio": 0.5})).reused
