"""Stage 2: every vote is kept in the sets' order, and the guide's command writes the guide's files."""

import json
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import JudgeSettings
from nothing_gpt.dpo.judge import JUDGED, judge, main
from nothing_gpt.endpoint import Service
from nothing_gpt.preferences import read_judged
from nothing_gpt.records import read_jsonl, write_jsonl
from tests.fake_endpoint import Answer, FakeEndpoint, Request, says
from tests.judges import shown, verdict_text
from tests.samples import prompt

pytestmark = pytest.mark.usefixtures("hasty")
SETTINGS = JudgeSettings(max_failed_share=0.5)


def longest(request: Request) -> Answer:
    """A judge that likes the longest text best, and cannot judge one with "dull" in it."""
    lengths = [len(text) for text in shown(request)]
    if "dull" in shown(request):
        return says("I would rather not.", model=request["model"])
    best, worst = lengths.index(max(lengths)) + 1, lengths.index(min(lengths)) + 1
    return says(verdict_text(best, worst, reason="long"), model=request["model"])


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


def test_a_vote_is_kept_with_all_that_an_audit_asks_for(workshop: Workshop, service: Service) -> None:
    (row,) = rows(workshop, judge(workshop, given(workshop, [["a", "bb"]]), SETTINGS, service))
    first, second = row["votes"]
    assert first["order"] == second["order"][::-1]
    assert first == {
        "order": first["order"],
        "best": 1,
        "worst": 0,
        "tie": False,
        "reason": "long",
        "model": "fake",
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "completion_tokens": 5,
    }


def test_what_is_written_is_what_the_next_stage_reads(workshop: Workshop, service: Service) -> None:
    settings = SETTINGS.model_copy(update={"repeat_share": 0.1, "votes": 3})
    made = judge(
        workshop, given(workshop, [["a", "b" * n, "dull" if n == 2 else "c"] for n in range(2, 40)]), settings, service
    )
    judged = [*read_judged(workshop.file(made, JUDGED))]
    assert {len(one.votes) for one in judged} == {0, 4}
    assert any(one.repeats for one in judged)
    assert [one.failed is None for one in judged] == [bool(one.votes) for one in judged]


def test_a_set_that_could_not_be_judged_has_the_reason_beside_the_votes_it_has(
    workshop: Workshop, service: Service
) -> None:
    made = judge(workshop, given(workshop, [["a", "dull"], ["a", "bb"]]), SETTINGS, service)
    failed, good = rows(workshop, made)
    assert "no usable verdict" in failed["failed"]
    assert (failed["status"], failed["attempts"], failed["votes"]) == (None, 2, [])
    assert "failed" not in good
    assert workshop.counts(made)["failed"] == 1


def test_a_set_without_a_choice_has_not_failed(workshop: Workshop, service: Service) -> None:
    made = judge(workshop, given(workshop, [["a", "a"], ["a", "bb"]]), SETTINGS, service)
    assert rows(workshop, made)[0]["failed"] == "fewer than two distinct completions"
    assert workshop.counts(made)["failed"] == 0


def test_the_manifest_tells_what_the_votes_cost(workshop: Workshop, service: Service) -> None:
    settings = SETTINGS.model_copy(update={"panel": ["second"]})
    usage = workshop.counts(judge(workshop, given(workshop, [["a", "bb"]]), settings, service))["usage"]
    assert (usage["calls"], usage["prompt_tokens"], usage["cost_usd"]) == (4, 40, None)
    assert [usage["models"][name]["calls"] for name in ("fake", "second")] == [2, 2]


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
        ({"panel": ["second"]}, False),
        ({"repeat_share": 0.1}, False),
    ],
)
def test_only_what_changes_a_verdict_makes_another_artifact(
    workshop: Workshop, service: Service, change: dict[str, Any], reused: bool
) -> None:
    source = given(workshop, [["a", "bb"]])
    judge(workshop, source, SETTINGS, service)
    assert judge(workshop, source, SETTINGS.model_copy(update=change), service).reused == reused


def test_another_rubric_makes_another_artifact_and_the_same_elsewhere_does_not(
    workshop: Workshop, service: Service, tmp_path: Path
) -> None:
    source, made = given(workshop, [["a", "bb"]]), list[Artifact]()
    for name, text in [("one", "The longest is best."), ("two", "The longest is best."), ("one", "Be kind.")]:
        (tmp_path / name).write_text(text)
        made.append(judge(workshop, source, SETTINGS.model_copy(update={"rubric": str(tmp_path / name)}), service))
    assert [artifact.reused for artifact in made] == [False, True, False]


def test_the_guides_own_file_is_judged(workshop: Workshop, service: Service, tmp_path: Path) -> None:
    file = tmp_path / "completions.jsonl"
    file.write_text(json.dumps({"prompt": prompt().messages, "completions": ["a", "bb"]}))
    made = judge(workshop, workshop.adopt(Stage("completions", 0), {"completions.jsonl": file}), SETTINGS, service)
    assert len(rows(workshop, made)[0]["votes"]) == 2


def test_a_text_that_is_there_twice_is_shown_once(workshop: Workshop, service: Service, fake: FakeEndpoint) -> None:
    made = judge(workshop, given(workshop, [["bb", "a", "bb"]]), SETTINGS.model_copy(update={"votes": 3}), service)
    assert sorted(map(shown, fake.requests)) == [["a", "bb"], ["bb", "a"]]
    (row,) = rows(workshop, made)
    assert {(vote["best"], vote["worst"]) for vote in row["votes"]} == {(0, 1)}


@pytest.fixture
def guide(fake: FakeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The guide's folder, and its variables set."""
    for name, value in {
        "DPO_DATA_PATH": str(tmp_path),
        "OPENAI_BASE_URL": fake.url,
        "OPENAI_API_KEY": "sk-secret",
        "JUDGE_MODEL": "fake",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_an_empty_name_of_a_judge_is_none(guide: Path, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_MODEL", "")
    write_jsonl(guide / "completions.jsonl", [{"prompt": prompt().messages, "completions": ["a", "bb"]}])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert {request["model"] for request in fake.requests} == {JudgeSettings().model}


@pytest.mark.parametrize("name", ["judged.jsonl", "train.jsonl", "val.jsonl"])
def test_a_file_that_cannot_be_written_is_one_clear_line(
    guide: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_jsonl(guide / "completions.jsonl", [{"prompt": prompt().messages, "completions": ["a", "bb"]}])
    (guide / name).mkdir()
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {guide / name}: cannot be ")
    assert "Is a directory" in line


def test_the_guides_command_reads_and_writes_the_guides_files(guide: Path, fake: FakeEndpoint) -> None:
    texts = [[f"{number}", "bb" * number + "bbb"] for number in range(1, 60)]
    write_jsonl(
        guide / "completions.jsonl", ({"prompt": prompt(pair[0]).messages, "completions": pair} for pair in texts)
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    written = [row for name in ("train.jsonl", "val.jsonl") for _, row in read_jsonl(guide / name)]
    assert len(written) == 59
    assert all(len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in written)
    assert set(fake.authorization) == {"Bearer sk-secret"}
    for file in guide.rglob("*"):
        assert file.is_dir() or b"sk-secret" not in file.read_bytes()
