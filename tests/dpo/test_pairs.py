"""Stage 3: the pairs' files and the data report, and what happens where too little is left."""

import json
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import JudgeSettings
from nothing_gpt.dpo.pairs import EXAMPLES, PEOPLE, QUALITY, pairs, people
from nothing_gpt.errors import FatalError
from nothing_gpt.preferences import TRAIN, VAL
from nothing_gpt.records import read_jsonl, write_jsonl
from tests.samples import prompt

SETTINGS = JudgeSettings(val_ratio=0.3, min_pairs=1)
TEXTS = ["zero", "one", "two"]
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
                    "completions": TEXTS,
                    "truncated": [False] * 3,
                    "votes": [
                        {"order": order, "best": best, "worst": worst, "tie": False, "reason": "", "model": "m"}
                        for order, (best, worst) in zip(([0, 1, 2], [2, 1, 0]), votes, strict=True)
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
    counts = {"rows": 40, "train": len(train), "val": len(val)}
    assert workshop.counts(made) == counts | {"drops": {"degenerate": 2, "not sampled": 1}}


def test_the_report_counts_what_was_dropped_in_every_stage(workshop: Workshop) -> None:
    made = pairs(workshop, *given(workshop, [[(1, 2), (1, 2)]] * 30 + [[(1, 2), (0, 2)]] * 10), SETTINGS)
    quality = json.loads(workshop.file(made, QUALITY).read_text())
    assert quality["drops"] == {"degenerate": 2, "not sampled": 1, "votes disagree": 10}
    assert (quality["pairs"], quality["agreement"]) == (30, 0.75)


def test_examples_are_a_sample_with_the_judges_reasons(workshop: Workshop) -> None:
    examples = rows(workshop, pairs(workshop, *given(workshop, [[(1, 2), (1, 2)]] * 60), SETTINGS), EXAMPLES)
    assert len(examples) == 50
    assert len(examples[0]["reasons"]) == 2


@pytest.mark.parametrize("ballots", [[], [[(1, 2), (2, 1)]] * 20])
def test_a_judge_that_agrees_on_nothing_stops_the_run(workshop: Workshop, ballots: list[Votes]) -> None:
    with pytest.raises(FatalError, match=r"pairs: no pair is left of \d+ sets \(dropped: 2 degenerate"):
        pairs(workshop, *given(workshop, ballots), SETTINGS)


def test_only_the_split_is_a_setting(workshop: Workshop) -> None:
    inputs = given(workshop, [[(1, 2), (1, 2)]] * 40)
    pairs(workshop, *inputs, SETTINGS)
    others = {"concurrency": 1, "max_tokens": 99, "min_agreement": 0.9, "beyond_limits": "fatal"}
    assert pairs(workshop, *inputs, SETTINGS.model_copy(update=others)).reused
    assert not pairs(workshop, *inputs, SETTINGS.model_copy(update={"val_ratio": 0.5})).reused


def test_a_limit_that_is_not_kept_is_said_also_of_pairs_that_were_there(
    workshop: Workshop, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = given(workshop, [[(1, 2), (1, 2)]] * 40)
    for _ in range(2):
        pairs(workshop, *inputs, SETTINGS.model_copy(update={"min_pairs": 41}))
        assert "warning: judge.min_pairs: 40 pairs, fewer than the limit of 41" in capfd.readouterr().err


def test_a_limit_that_is_not_kept_is_fatal_where_the_setting_says_so(workshop: Workshop) -> None:
    inputs = given(workshop, [[(1, 2), (1, 2)]] * 40)
    strict = SETTINGS.model_copy(update={"min_pairs": 41, "beyond_limits": "fatal"})
    for _ in range(2):
        with pytest.raises(FatalError, match=r"pairs: judge.min_pairs: 40 pairs.*the votes are kept"):
            pairs(workshop, *inputs, strict)
    assert pairs(workshop, *inputs, SETTINGS).reused


def test_hand_labels_add_the_agreement_with_people_and_leave_the_pairs_alone(
    workshop: Workshop, tmp_path: Path
) -> None:
    inputs = given(workshop, [[(1, 2), (1, 2)]] * 20 + [[(2, 0), (2, 0)]] * 20)
    before = pairs(workshop, *inputs, SETTINGS)
    labels = [{"prompt": prompt(str(n)).messages, "completions": TEXTS, "best": 1, "worst": 2} for n in range(30)]
    write_jsonl(tmp_path / "human.jsonl", labels)
    labelled = SETTINGS.model_copy(update={"hand_labels": str(tmp_path / "human.jsonl")})
    assert pairs(workshop, *inputs, labelled).digest == before.digest
    made = people(workshop, inputs[1], labelled)
    assert made is not None
    found = json.loads(workshop.file(made, PEOPLE).read_bytes())
    assert (made.reused, found["matched"], found["ranked"]) == (True, 30, 30)
    write_jsonl(tmp_path / "human.jsonl", labels[:10])
    again = people(workshop, inputs[1], labelled)
    assert again is not None
    assert not again.reused


def test_hand_labels_that_cannot_be_read_stop_the_stage(workshop: Workshop, tmp_path: Path) -> None:
    labelled = SETTINGS.model_copy(update={"hand_labels": str(tmp_path / "none.jsonl")})
    with pytest.raises(FatalError, match=r"none.jsonl: cannot read it"):
        pairs(workshop, *given(workshop, [[(1, 2), (1, 2)]]), labelled)
