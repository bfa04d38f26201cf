"""Stages 2 and 3: every vote is kept, and the pairs they make are in TRL's form with a report on the data."""

import json
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import JudgeSettings
from nothing_gpt.dpo.judge import JUDGED, judge
from nothing_gpt.endpoint import Service
from nothing_gpt.records import read_jsonl, write_jsonl
from tests.fake_endpoint import Answer, FakeEndpoint, Request, says
from tests.samples import prompt

pytestmark = pytest.mark.usefixtures("hasty")
SETTINGS = JudgeSettings(max_failed_share=0.5)


def longest(request: Request) -> Answer:
    """A judge that likes the longest text best, and cannot judge one with "dull" in it."""
    shown = [item["text"] for item in json.loads(request["messages"][1]["content"])["completions"]]
    if "dull" in shown:
        return says("I would rather not.")
    lengths = [len(text) for text in shown]
    return says(
        json.dumps(
            {
                "reason": "long",
                "best": lengths.index(max(lengths)) + 1,
                "worst": lengths.index(min(lengths)) + 1,
                "tie": False,
            }
        )
    )


def given(workshop: Workshop, sets: list[list[str]]) -> Artifact:
    def build(folder: Path) -> dict[str, int]:
        write_jsonl(
            folder / "completions.jsonl",
            (
                {"prompt": prompt(str(number)).messages, "completions": texts, "truncated": [False] * len(texts)}
                for number, texts in enumerate(sets)
            ),
        )
        return {}

    return workshop.make(Stage("completions", 1), {"sets": sets}, {}, build)


def rows(workshop: Workshop, made: Artifact) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(workshop.file(made, JUDGED))]


@pytest.fixture(autouse=True)
def judging(fake: FakeEndpoint) -> None:
    fake.answer = longest


def test_every_set_has_its_votes_in_the_sets_order(workshop: Workshop, service: Service) -> None:
    judged = rows(
        workshop, judge(workshop, given(workshop, [["a", "bb", "ccc"], ["aaa", "bb", "c"]]), SETTINGS, service)
    )
    assert [row["prompt"] for row in judged] == [prompt("0").messages, prompt("1").messages]
    assert [[(vote["best"], vote["worst"]) for vote in row["votes"]] for row in judged] == [[(2, 0)] * 2, [(0, 2)] * 2]


def test_a_set_that_could_not_be_judged_has_the_reason_in_place_of_votes(workshop: Workshop, service: Service) -> None:
    made = judge(workshop, given(workshop, [["a", "dull"], ["a", "bb"]]), SETTINGS, service)
    failed, good = rows(workshop, made)
    assert "no usable verdict" in failed["failed"]
    assert "votes" not in failed
    assert len(good["votes"]) == 2
    assert workshop.counts(made)["failed"] == 1


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        ({"concurrency": 1}, True),
        ({"val_ratio": 0.3}, True),
        ({"max_cost_usd": 5.0, "prices": {}}, True),
        ({"votes": 1}, False),
        ({"seed": 1}, False),
        ({"temperature": 0.0}, False),
        ({"max_tokens": 100}, False),
    ],
)
def test_only_what_changes_a_verdict_makes_another_artifact(
    workshop: Workshop, service: Service, change: dict[str, Any], reused: bool
) -> None:
    source = given(workshop, [["a", "bb"]])
    judge(workshop, source, SETTINGS, service)
    assert judge(workshop, source, SETTINGS.model_copy(update=change), service).reused == reused


def test_the_guides_own_file_is_judged(workshop: Workshop, service: Service, tmp_path: Path) -> None:
    file = tmp_path / "completions.jsonl"
    file.write_text(json.dumps({"prompt": prompt().messages, "completions": ["a", "bb"]}))
    made = judge(workshop, workshop.adopt(Stage("completions", 0), {"completions.jsonl": file}), SETTINGS, service)
    assert len(rows(workshop, made)[0]["votes"]) == 2


def test_the_guides_command_reads_and_writes_the_guides_files(
    fake: FakeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nothing_gpt.dpo.judge import main

    texts = [[f"{number}", "bb" * number + "bbb"] for number in range(1, 60)]
    write_jsonl(
        tmp_path / "completions.jsonl", ({"prompt": prompt(pair[0]).messages, "completions": pair} for pair in texts)
    )
    for name, value in {
        "DPO_DATA_PATH": str(tmp_path),
        "OPENAI_BASE_URL": fake.url,
        "OPENAI_API_KEY": "sk-secret",
        "JUDGE_MODEL": "fake",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    written = [row for name in ("train.jsonl", "val.jsonl") for _, row in read_jsonl(tmp_path / name)]
    assert len(written) == 59
    assert all(len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in written)
    assert set(fake.authorization) == {"Bearer sk-secret"}
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or b"sk-secret" not in file.read_bytes()
