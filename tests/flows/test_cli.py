"""The `nothing-gpt` program as far as it needs no Prefect server: what it prints, and how it ends.

Whatever a user gets wrong is one line on stderr that begins with `error: ` and exit code 1, never a traceback.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.record import RunRecord
from nothing_gpt.artifacts import Artifact, Stage, Workshop, lease
from nothing_gpt.config import PromptsSettings, Settings
from nothing_gpt.dpo.gate import Decision, Reason
from nothing_gpt.dpo.prompts import prompts
from nothing_gpt.embedded import stages
from nothing_gpt.errors import FatalError
from nothing_gpt.processes import free_port
from nothing_gpt.serve.registry import KEY, Registry, promoted, read_registry, swap
from nothing_gpt.store import FolderStore, open_store
from tests.fake_endpoint import FakeEndpoint
from tests.fake_vllm import save_adapter
from tests.flows.conftest import Call, Ended
from tests.flows.fakes import START

NOWHERE = f"http://127.0.0.1:{free_port()}/v1"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def work(data: Path) -> Workshop:
    """The workshop of the program's data folder."""
    return Workshop(open_store(str(data / "store")), data / "work")


@pytest.fixture
def program(call: Call, data: Path) -> Call:
    """The program on the data folder."""
    return lambda *arguments, **answer: call(*arguments, "--set", f"place.data={data}", **answer)


def local(prompts_file: Path) -> list[str]:
    """Settings of a place with a vLLM and a judge of one's own, neither of which is there."""
    values = {
        "place.kind": "local",
        "place.base_model": "some/base",
        "place.sft_adapter": save_adapter(prompts_file.parent / "start", START),
        "place.serve_url": NOWHERE,
        "place.judge_url": NOWHERE,
        "prompts.path": prompts_file,
    }
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def prompts_file(folder: Path, count: int) -> Path:
    file = folder / "prompts.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"[ANNA] Platform {n} again."}]} for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


# Settings.


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("training.betta=0.1", "training.betta: no such setting; did you mean beta?"),
        ("trainning.beta=0.1", "trainning: no such setting; did you mean training?"),
        ("training.beta=11", "training.beta: input should be less than or equal to 10 (given: 11)"),
        ("sampling.num_completions=1", "sampling.num_completions: input should be greater than or equal to 2"),
        ("training.beta=much", "training.beta: input should be a valid number"),
        ("place.kind=cloud", "place.kind: input should be 'embedded' or 'local'"),
        ("beta=0.1", "--set beta=0.1: write it as group.key=value"),
        ("training.beta", "--set training.beta: write it as group.key=value"),
        ("training.beta=[", "--set training.beta=[: the value is not YAML"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_what_it_may_be(program: Call, given: str, complaint: str) -> None:
    assert program("run", "--set", given).error.startswith(complaint)


def test_a_place_of_ones_own_wants_prompts_and_a_base_model(program: Call) -> None:
    assert "give --prompts FILE" in program("run", "--set", "place.kind=local").error


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "No such file or directory"),
        ("training: {beta: [", "not YAML"),
        ("- training", "expected groups of settings"),
        ("training: 3", "expected groups of settings"),
    ],
)
def test_a_settings_file_that_cannot_be_used_is_named(
    program: Call, tmp_path: Path, text: str | None, complaint: str
) -> None:
    file = tmp_path / "settings.yaml"
    if text is not None:
        file.write_text(text)
    error = program("run", "--settings", str(file)).error
    assert error.startswith(f"{file}: ")
    assert complaint in error


def test_an_unknown_stage_is_answered_with_the_known_ones(program: Call) -> None:
    error = program("run", "--until", "trane").error
    assert error.startswith("--until trane: no such stage; the stages are scripts, prompts,")


# Prompts.

LINE = '{"prompt": [{"role": "user", "content": "[ANNA] Hello."}]}'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "cannot read it (No such file or directory)"),
        ("", "holds no prompts"),
        (f"{LINE}\nhello\n", "line 2: not JSON"),
        (f'{LINE}\n{{"prompts": []}}\n', 'line 2: no "prompt"'),
        ('{"prompt": [{"role": "narrator", "content": "x"}]}', "line 1: unknown role 'narrator'"),
        ('{"prompt": [{"role": "user", "content": " "}]}', "line 1: an empty user message"),
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_prompts_file_that_cannot_be_used_is_refused_before_anything_is_started(
    program: Call, data: Path, tmp_path: Path, text: str | None, complaint: str, dry: list[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    if text is not None:
        file.write_text(text)
    error = program("run", *dry, *local(file)).error
    assert error.startswith(str(file))
    assert complaint in error
    assert not (data / "prefect").exists()


# The data folder.


@pytest.mark.parametrize(
    "command", [["run"], ["run", "--dry-run"], ["report"], ["serve"], ["prune"], ["adapters", "list"]]
)
def test_a_store_of_a_newer_version_is_not_touched(program: Call, work: Workshop, command: list[str]) -> None:
    work.store.write("FORMAT", b"2")
    assert "written by a newer version of nothing-gpt" in program(*command).error
    assert list(work.store.list()) == ["FORMAT"]


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["report"], ["adapters", "rollback"], ["prune"]])
def test_a_data_folder_that_cannot_be_written_is_named(program: Call, data: Path, command: list[str]) -> None:
    data.write_text("a file where the folder should be")
    error = program(*command).error
    assert error.startswith(str(data))
    assert "make the folder writable" in error


# Where there is nothing yet.


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_report_of_no_run_says_how_to_start_one(program: Call, form: list[str]) -> None:
    assert "no run yet; start one with `nothing-gpt run`" in program("report", *form).error


@pytest.mark.parametrize("command", [["serve"], ["adapters", "rollback"]])
def test_with_nothing_promoted_there_is_nothing_to_serve_or_to_take_back(program: Call, command: list[str]) -> None:
    assert program(*command).error == "no adapter is promoted; run `nothing-gpt run` first"


def test_an_empty_list_of_adapters_says_so(program: Call) -> None:
    assert program("adapters", "list") == Ended(0, "nothing is promoted yet\n", "")


def test_a_place_with_a_server_of_its_own_is_not_served_again(program: Call, tmp_path: Path) -> None:
    error = program("serve", *local(prompts_file(tmp_path, 5))).error
    assert "this place has a vLLM of its own" in error


# What a run would do.


def plan(output: str) -> dict[str, list[str]]:
    """The rows of a printed plan by stage."""
    return {parts[0]: parts[1:] for line in output.splitlines()[1:] if (parts := line.replace("to do", "todo").split())}


def test_on_an_empty_folder_everything_is_to_do_with_rows_calls_and_cost(program: Call, data: Path) -> None:
    options = ["--set", "place.gpu_usd_per_hour=1", "--set", "training.num_train_epochs=2"]
    ended = program("run", "--dry-run", *options)
    assert ended.code == 0
    rows = plan(ended.out)
    assert list(rows) == [
        *("scripts", "prompts", "base", "sft", "generate_pairs", "judge", "pairs", "train", "evaluate"),
        *("gate", "promote", "expected"),
    ]
    assert all(row[0] == "todo" for stage, row in rows.items() if stage != "expected")
    assert rows["prompts"] == rows["pairs"] == ["todo", "192"]
    assert rows["generate_pairs"] == ["todo", "192", "192"]
    assert rows["judge"] == ["todo", "192", "384", "0.00"]
    # 144 pairs, 2 epochs, 0.88 seconds each
    assert rows["train"] == ["todo", "144", "0.07"]
    assert rows["evaluate"] == ["todo", "72", "288", "0.00"]
    assert rows["expected"] == ["cost:", "0.07", "USD"]
    assert {path.name for path in data.iterdir()} == {"store"}


def test_what_is_there_is_listed_as_cached_with_the_rows_it_has(program: Call, work: Workshop) -> None:
    scripts = stages.scripts(work, 0)
    settings = PromptsSettings(limit=30, test_share=0.27, test_limit=11)
    prompts(work, work.file(scripts, "prompts.jsonl"), settings)
    ended = program("run", "--dry-run", "--set", "prompts.limit=30", "--set", "prompts.test_limit=11")
    rows = plan(ended.out)
    assert rows["scripts"][0] == "cached"
    assert rows["prompts"] == ["cached", "30"]
    assert rows["base"] == ["todo"]
    assert rows["generate_pairs"] == ["todo", "30", "30"]
    assert rows["evaluate"][:3] == ["todo", "11", "44"]


def test_the_plan_ends_at_the_stage_that_was_asked_for(program: Call) -> None:
    assert list(plan(program("run", "--dry-run", "--until", "pairs").out))[-2:] == ["pairs", "expected"]


def test_the_judges_price_is_in_the_expected_cost(program: Call, tmp_path: Path) -> None:
    """1,000 prompts of one's own, 100 of them held out, at 0.30 and 2.50 USD per million tokens."""
    settings = ["--set", "sampling.max_tokens=100", "--settings", str(empty_settings(tmp_path))]
    rows = plan(program("run", "--dry-run", *settings, *local(prompts_file(tmp_path, 1000))).out)
    assert "scripts" not in rows
    # 1,800 calls of 900 + 300 tokens, 200 calls of 800 + 300
    assert rows["judge"] == ["todo", "900", "1,800", "1.84"]
    assert rows["evaluate"] == ["todo", "100", "400", "0.20"]
    assert rows["expected"] == ["cost:", "2.03", "USD"]


def test_a_judge_without_a_price_is_named_beside_the_cost(program: Call, tmp_path: Path) -> None:
    settings = ["--set", "judge.model=mine", "--settings", str(empty_settings(tmp_path))]
    ended = program("run", "--dry-run", *settings, *local(prompts_file(tmp_path, 50)))
    assert "without judge, evaluate: the judge's price is not in judge.prices" in ended.out


def empty_settings(folder: Path) -> Path:
    file = folder / "defaults.yaml"
    file.write_text("{}")
    return file


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
    preferences = make(work, "pairs", {"quality.json": QUALITY, "train.jsonl": pair}, {"prompts": asked}, rows=100)
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
    record = RunRecord(work, Settings())
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
    record = RunRecord(work, Settings())
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
    record = RunRecord(work, Settings())
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
    (work.work / "adapter" / "dead" / "_work").mkdir(parents=True)
    return [orphan.key, "journal/sampling/abc", "scratch adapter/dead"]


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
    kept = [key for key in work.store.list() if not key.startswith((rubbish[0], rubbish[1]))]
    ended = program("prune", *option, answer=answer)
    assert ended.code == 0
    assert "deleted 3" in ended.err
    assert list(work.store.list()) == kept
    assert not (work.work / "adapter" / "dead").exists()
    assert "nothing to prune" in program("prune").err


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
    fetch = FolderStore.fetch

    def vanishing(store: FolderStore, key: str) -> Path:
        if key.startswith("journal/"):
            store.delete(key)
        return fetch(store, key)

    monkeypatch.setattr(FolderStore, "fetch", vanishing)
    assert "deleted 3" in program("prune", "--yes").err


# What is missing.


def test_the_doctor_names_what_does_not_answer_what_that_prevents_and_what_to_do(program: Call, tmp_path: Path) -> None:
    ended = program("doctor", *local(prompts_file(tmp_path, 5)))
    assert "something is missing" in ended.error
    missing = [line for line in ended.out.splitlines() if line.startswith("MISSING")]
    assert any("vLLM" in line and "prevents sampling, evaluation and promotion" in line for line in missing)
    assert any("judge" in line and "prevents judging and evaluation" in line for line in missing)
    assert not any("judge" in line and "is vLLM running" in line for line in missing)


def test_the_doctor_names_the_package_that_training_wants(program: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> object:
        return None if name in ("trl", "torch") else name

    monkeypatch.setattr("flows.doctor.importlib.util.find_spec", find)
    ended = program("doctor")
    assert "MISSING  package trl: prevents training; run `make env`" in ended.out.splitlines()


def test_the_doctor_finds_nothing_wrong_where_all_answers(
    program: Call, tmp_path: Path, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.doctor._packages", list)
    urls = ["--set", f"place.serve_url={fake.url}", "--set", f"place.judge_url={fake.url}", "--set", "judge.model=fake"]
    ended = program("doctor", *local(prompts_file(tmp_path, 5)), *urls)
    assert (ended.code, ended.err) == (0, "")
    assert f"ok       judge {fake.url}: serves fake" in ended.out.splitlines()


def test_the_doctor_says_that_the_data_folder_cannot_be_used(program: Call, data: Path) -> None:
    data.write_text("a file where the folder should be")
    ended = program("doctor")
    assert "something is missing" in ended.error
    assert "prevents everything" in ended.out
