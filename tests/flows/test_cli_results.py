"""The `nothing-gpt` program after a run: the report, the promoted adapters, and what may be deleted."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.record import RunRecord, last_run
from nothing_gpt.artifacts import Artifact, Stage, Workshop, lease
from nothing_gpt.config import Settings
from nothing_gpt.dpo.gate import Decision, Reason
from nothing_gpt.errors import FatalError
from nothing_gpt.given import give
from nothing_gpt.serve.registry import KEY, Registry, promoted, read_registry, swap
from nothing_gpt.store import FolderStore
from tests.fake_vllm import save_adapter
from tests.flows.conftest import Call

# The report.

TRAINING = {
    "step0_loss": 0.6931,
    "eval_accuracy": 0.8,
    "eval_accuracy_ci": [0.7, 0.88],
    "eval_margin": 0.2,
    "eval_margin_ci": [0.1, 0.3],
}
WIN_RATE = {"value": 0.75, "ci": [0.62, 0.86], "n": 40}
QUALITY = {"pairs": 100, "drops": {"tie": 3}, "agreement": 0.9, "longer_chosen": 0.5}


def make(
    work: Workshop, stage: str, files: dict[str, Any], inputs: dict[str, Artifact] | None = None, **counts: Any
) -> Artifact:
    """An artifact with these JSON files."""

    def build(folder: Path) -> dict[str, Any]:
        for name, value in files.items():
            (folder / name).write_text(json.dumps(value) + "\n")
        return counts

    return work.make(Stage(stage, 1), {"files": files}, inputs or {}, build)


def finish_a_run(work: Workshop, place: str = "embedded") -> Artifact:
    """A run that promoted its candidate: made by hand, recorded as a run is. Returns the candidate."""
    pair = {"chosen": [{"content": "a"}], "rejected": [{"content": "b"}], "prompt": [{"role": "user", "content": "c"}]}
    comparison = {"prompt": pair["prompt"], "reference": "b", "candidate": "a", "score": 1.0, "reasons": ["better"]}
    asked = make(work, "prompts", {"prompts.jsonl": {}}, rows=140)
    preferences = make(work, "pairs", {"quality.json": QUALITY, "examples.jsonl": pair}, {"prompts": asked}, rows=100)
    step = {"step": 1, "loss": 0.69}
    candidate = make(work, "adapter", {"metrics.json": TRAINING, "steps.jsonl": step}, {"pairs": preferences}, rows=75)
    usage = {"judge": {"calls": 80, "cost_usd": 0.25}}
    evaluation = make(
        work,
        "evaluation",
        {"metrics.json": {"win_rate": WIN_RATE}, "comparisons.jsonl": comparison},
        {"prompts": asked},
        rows=40,
        usage=usage,
    )
    registry = promoted(
        read_registry(work.store),
        name="seinfeld",
        artifact=candidate.key,
        fingerprint=candidate.fingerprint,
        place=place,
        digest="d",
        metrics={"eval_accuracy": 0.8, "win_rate": 0.75},
        reasons=[],
    )
    swap(work.store, read_registry(work.store), registry)
    record = RunRecord(work, Settings(), "flow-run")
    record.stage("prompts", lambda: work.find(asked.stage, asked.fingerprint))
    record.stage("pairs", lambda: preferences)
    record.stage("train", lambda: candidate)
    record.stage("evaluate", lambda: evaluation)
    record.stage("gate", lambda: Decision((Reason(True, "win rate 0.75"),)))
    record.stage("promote", lambda: registry.versions[-1])
    record.finish()
    return candidate


def test_the_report_as_json_holds_the_figures_of_the_last_run(program: Call, work: Workshop) -> None:
    candidate = finish_a_run(work)
    ended = program("report", "--json")
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out)
    assert report["stages"]["prompts"].items() >= {"status": "cached", "rows": 140}.items()
    assert report["stages"]["train"].items() >= {"status": "ran", "rows": 75}.items()
    assert all(isinstance(stage["seconds"], float) for stage in report["stages"].values())
    assert report["data"] == QUALITY
    assert report["training"] == TRAINING
    assert report["win_rate"] == WIN_RATE
    assert report["gate"] == {"passed": True, "reasons": [{"passed": True, "text": "win rate 0.75"}]}
    assert report["promoted"] == {"name": "seinfeld", "version": 1, "fingerprint": candidate.fingerprint}
    assert report["cost_usd"] == 0.25


def test_a_run_that_ended_early_has_null_for_what_it_did_not_reach(program: Call, work: Workshop) -> None:
    record = RunRecord(work, Settings(), "flow-run")
    record.stage("prompts", lambda: make(work, "prompts", {"prompts.jsonl": {}}, rows=140))
    record.finish()
    report = json.loads(program("report", "--json").out)
    assert [report[key] for key in ("data", "training", "win_rate", "gate", "promoted")] == [None] * 5
    assert report["cost_usd"] == 0


def test_the_report_for_people_shows_the_decision_and_where_the_page_is(
    program: Call, data: Path, work: Workshop
) -> None:
    finish_a_run(work)
    ended = program("report")
    assert ended.code == 0
    assert "Promoted: the new adapter is served as seinfeld" in ended.out
    assert f"Report: {data / 'report.html'}" in ended.out.replace("\n", "")
    assert "<html" in (data / "report.html").read_text()


def test_a_long_reason_is_shown_to_its_end(program: Call, work: Workshop) -> None:
    record = RunRecord(work, Settings(), "flow-run")
    reason = " ".join(f"word{n}" for n in range(40))
    with pytest.raises(FatalError):
        record.stage("prompts", lambda: fail(reason))
    record.finish()
    shown = program("report").out
    assert reason in " ".join(shown.split())


def fail(reason: str) -> None:
    raise FatalError(reason)


def test_the_list_of_adapters_marks_the_current_one(program: Call, work: Workshop) -> None:
    finish_a_run(work)
    lines = program("adapters", "list").out.splitlines()
    assert len(lines) == 2
    assert lines[1].split()[:3] == ["->", "1", "seinfeld"]


@pytest.mark.parametrize("command", [["serve"], ["adapters", "rollback"]])
def test_what_was_promoted_in_another_place_is_neither_served_nor_taken_back(
    program: Call, work: Workshop, command: list[str]
) -> None:
    finish_a_run(work, place="local")
    before = read_registry(work.store)
    assert "was promoted in place local; give its settings with --settings" in program(*command).error
    assert read_registry(work.store) == before


def test_an_embedded_version_is_taken_back_though_its_files_are_gone(program: Call, work: Workshop) -> None:
    candidate = finish_a_run(work)
    shutil.rmtree(work.folder(candidate))
    assert "seinfeld is the starting adapter again" in program("adapters", "rollback").err
    assert read_registry(work.store).current is None


@pytest.mark.parametrize("command", [["serve"], ["prune"], ["adapters", "list"], ["adapters", "rollback"]])
def test_a_damaged_registry_is_named(program: Call, work: Workshop, command: list[str]) -> None:
    work.store.write(KEY, b"{")
    assert program(*command).error.startswith(f"{work.store.uri}/{KEY}: damaged")


# Deleting what nothing needs.


@pytest.fixture
def rubbish(work: Workshop) -> list[str]:
    """A finished run, an older version with its own input, and beside them what nothing refers to."""
    older = make(work, "pairs", {"train.jsonl": "older"})
    first = make(work, "adapter", {"metrics.json": "older"}, {"pairs": older})
    fields: dict[str, Any] = {"name": "seinfeld", "place": "embedded", "digest": "d", "metrics": {}, "reasons": []}
    registry = promoted(Registry(), artifact=first.key, fingerprint=first.fingerprint, **fields)
    swap(work.store, Registry(), registry)
    finish_a_run(work)
    orphan = make(work, "pairs", {"train.jsonl": "nobody's"})
    work.store.write("journal/sampling/abc/1.jsonl", b"{}\n")
    work.store.write("checkpoints/dead/checkpoint-5/optimizer.pt", b"0")
    (work.work / "adapter" / "dead" / "_work").mkdir(parents=True)
    return [orphan.key, "journal/sampling/abc", "checkpoints/dead", "scratch adapter/dead"]


def test_what_is_unreferenced_is_listed_and_kept_where_the_answer_is_no(
    program: Call, work: Workshop, rubbish: list[str]
) -> None:
    before = list(work.store.list())
    ended = program("prune", answer="n\n")
    assert [line.partition(" MB  ")[2] for line in ended.out.splitlines()[: len(rubbish)]] == rubbish
    assert list(work.store.list()) == before
    assert (work.work / "adapter" / "dead").exists()


@pytest.mark.parametrize(("option", "answer"), [([], "y\n"), (["--yes"], "")])
def test_only_what_is_unreferenced_is_deleted(
    program: Call, work: Workshop, rubbish: list[str], option: list[str], answer: str
) -> None:
    kept = [key for key in work.store.list() if not key.startswith(tuple(rubbish))]
    ended = program("prune", *option, answer=answer)
    assert ended.code == 0
    assert "deleted 4" in ended.err
    assert list(work.store.list()) == kept
    assert not (work.work / "adapter" / "dead").exists()
    assert "nothing to prune" in program("prune").err


def test_journals_are_kept_while_something_that_is_kept_lacks_failed_rows(
    program: Call, work: Workshop, rubbish: list[str]
) -> None:
    completions = make(work, "generate_pairs", {"completions.jsonl": "some"}, failed=1)
    candidate = make(work, "adapter", {"metrics.json": "newer"}, {"completions": completions})
    registry = read_registry(work.store)
    fields: dict[str, Any] = {"name": "seinfeld", "place": "embedded", "digest": "d", "metrics": {}, "reasons": []}
    swap(work.store, registry, promoted(registry, artifact=candidate.key, fingerprint=candidate.fingerprint, **fields))
    listed = [line.partition(" MB  ")[2] for line in program("prune", answer="n\n").out.splitlines()]
    assert (rubbish[0] in listed, rubbish[1] in listed) == (True, False)


@pytest.mark.parametrize(("until", "kept"), [("2999-01-01T00:00:00+00:00", True), ("2020-01-01T00:00:00+00:00", False)])
def test_what_a_run_needs_that_waits_for_a_person_is_kept(
    program: Call, work: Workshop, rubbish: list[str], until: str, kept: bool
) -> None:
    waiting = {"waits_until": until, "stages": {"pairs": {"artifact": rubbish[0]}}}
    work.store.write("runs/waiting/flow-run.json", json.dumps(waiting).encode())
    listed = [line.partition(" MB  ")[2] for line in program("prune", answer="n\n").out.splitlines()]
    assert (rubbish[0] not in listed) is kept


def test_what_a_person_gave_is_kept_and_an_adapter_that_was_made_here_is_not(
    program: Call, work: Workshop, rubbish: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": [{"role": "user", "content": "[ANNA] Well?"}]}\n')
    given = [give(work, path).key for path in (file, save_adapter(tmp_path / "mine", 0.25))]
    base = make(work, "base", {"config.json": "a tiny one"})
    made = make(work, "sft", {"adapter_config.json": {}}, {"base": base})
    listed = {line.partition(" MB  ")[2] for line in program("prune", answer="n\n").out.splitlines()}
    assert {made.key, base.key} <= listed
    assert listed.isdisjoint(given)


def test_what_is_no_artifact_is_not_listed_whatever_its_name(program: Call, work: Workshop, rubbish: list[str]) -> None:
    """Beside the store in a bucket, or in an artifact that is kept."""
    candidate = read_registry(work.store).versions[-1].artifact
    for folder in ("website", "models/mine", f"{candidate}/tracking/wandb"):
        work.store.write(f"{folder}/manifest.json", b"{}")
    listed = [line.partition(" MB  ")[2] for line in program("prune", answer="n\n").out.splitlines()]
    assert listed[: len(rubbish)] == rubbish


def test_a_record_of_a_run_that_waited_goes_on_where_it_was(work: Workshop) -> None:
    made = make(work, "prompts", {"prompts.jsonl": "some"})
    before = RunRecord(work, Settings(), "flow-run")
    before.stage("prompts", lambda: replace(made, reused=False))
    waited = before.finish(waits_until=time.time() + 60)
    assert last_run(work.store) == f"runs/{waited['run']}"
    after = RunRecord(work, Settings(), "flow-run")
    after.stage("prompts", lambda: replace(made, reused=True))
    ended = after.finish()
    assert ended["stages"] == waited["stages"]
    assert (ended["run"], ended["started"]) == (waited["run"], waited["started"])
    assert "waits_until" not in json.loads(work.store.read(f"runs/{ended['run']}/summary.json") or b"{}")
    assert RunRecord(work, Settings(), "flow-run").finish()["run"] != waited["run"]


def test_nothing_is_listed_or_deleted_while_a_run_is_at_work(program: Call, work: Workshop, rubbish: list[str]) -> None:
    before = list(work.store.list())
    with lease(work.store, "leases/adapter-abc"):
        ended = program("prune", "--yes")
    assert (ended.error, ended.out) == ("a run is at work on adapter-abc; prune when it has ended", "")
    assert list(work.store.list()) == before


def test_nothing_is_deleted_where_a_run_began_before_the_answer(
    program: Call, work: Workshop, rubbish: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = iter([[], ["leases/adapter-abc"]])
    monkeypatch.setattr("flows.prune.live_leases", lambda store: next(held))
    assert "a run is at work on adapter-abc" in program("prune", answer="y\n").err
    assert work.store.read("journal/sampling/abc/1.jsonl") is not None


def test_a_file_that_is_gone_since_it_was_listed_is_skipped(
    program: Call, work: Workshop, rubbish: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = FolderStore.size

    def vanishing(store: FolderStore, key: str) -> int | None:
        if key.startswith("journal/"):
            store.delete(key)
        return size(store, key)

    monkeypatch.setattr(FolderStore, "size", vanishing)
    assert "deleted 4" in program("prune", "--yes").err
