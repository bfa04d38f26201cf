"""The `nothing-gpt` program as far as it needs no Prefect server: what it prints, and how it ends.

Whatever a user gets wrong is one line on stderr that begins with `error: ` and exit code 1, never a traceback.
"""

import json
from pathlib import Path

import pytest

from nothing_gpt.artifacts import Workshop
from nothing_gpt.config import PromptsSettings
from nothing_gpt.dpo.prompts import prompts
from nothing_gpt.embedded import stages
from nothing_gpt.given import give
from nothing_gpt.processes import free_port
from nothing_gpt.store import open_store
from tests.fake_endpoint import FakeEndpoint
from tests.fake_gcs import FakeGCS
from tests.fake_vllm import save_adapter
from tests.flows.conftest import Call, Ended
from tests.flows.fakes import START

NOWHERE = f"http://127.0.0.1:{free_port()}/v1"


def local(prompts_file: Path) -> list[str]:
    """Settings of a place with a vLLM and a judge of one's own, neither of which is there."""
    values = {
        "place.kind": "local",
        "place.base_model": "some/base",
        "place.base_revision": "c0ffee",
        "place.sft_adapter": save_adapter(prompts_file.parent / "start", START),
        "place.serve_url": NOWHERE,
        "place.judge_url": NOWHERE,
        "prompts.paths": json.dumps([str(prompts_file)]),
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
        ("place.kind=cloud", "place.kind: input should be 'embedded', 'local', 'gke' or 'modal'"),
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


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_stage_that_only_another_place_has_is_refused_before_anything_is_started(
    program: Call, data: Path, dry: list[str]
) -> None:
    error = program("run", *dry, "--until", "image").error
    assert error == "--until image: only the place gke has this stage"
    assert not data.exists()


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


def test_prompts_may_come_from_several_files(program: Call, tmp_path: Path) -> None:
    """Each prompt counts once, and half of them are held out."""
    one, two = prompts_file(tmp_path, 30), tmp_path / "two.jsonl"
    two.write_text(one.read_text().replace("Platform", "Carriage") + one.read_text())
    both = [*local(one), "--set", "prompts.test_share=0.5", "--prompts", str(one), "--prompts", str(two)]
    assert plan(program("run", "--dry-run", *both).out)["generate_pairs"] == ["todo", "30", "30"]
    sampled = program("run", "--dry-run", *both, "--set", "prompts.sample=20").out
    assert plan(sampled)["generate_pairs"] == ["todo", "10", "10"]


def test_each_of_several_prompts_files_must_be_there(program: Call, tmp_path: Path) -> None:
    one, missing = prompts_file(tmp_path, 30), tmp_path / "missing.jsonl"
    assert program("run", *local(one), "--prompts", str(one), "--prompts", str(missing)).error.startswith(str(missing))


@pytest.mark.gcs
def test_prompts_may_come_from_a_bucket(program: Call, tmp_path: Path, gcs: FakeGCS) -> None:
    file = prompts_file(tmp_path, 30)
    gcs.put("theirs/mine.jsonl", file.read_bytes())
    ended = program("run", "--dry-run", *local(file), "--prompts", "gs://bucket/theirs/mine.jsonl")
    assert ended.code == 0, ended.err
    assert plan(ended.out)["generate_pairs"][0] == "todo"


def test_a_file_whose_path_looks_like_a_key_is_given_with_a_dot_before_it(
    program: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    file = prompts_file(tmp_path, 30).rename("mine/0123456789abcdef")
    ended = program("run", "--dry-run", *local(file), "--prompts", "./mine/0123456789abcdef")
    assert ended.code == 0, ended.err


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
        *("gate", "promote", "expected:"),
    ]
    assert all(row[0] == "todo" for stage, row in rows.items() if stage != "expected:")
    assert rows["prompts"] == rows["pairs"] == ["todo", "192"]
    assert rows["generate_pairs"] == ["todo", "192", "192"]
    assert rows["judge"] == ["todo", "192", "384", "0.00"]
    # 144 pairs, 2 epochs, 0.88 seconds each
    assert rows["train"] == ["todo", "144", "0.07"]
    assert rows["evaluate"] == ["todo", "72", "288", "0.00"]
    assert rows["expected:"] == ["864", "calls,", "0.07", "USD"]
    assert {path.name for path in data.iterdir()} == {"store"}


def test_what_is_there_is_listed_as_cached_with_the_rows_it_has(program: Call, work: Workshop) -> None:
    scripts = stages.scripts(work, 0)
    settings = PromptsSettings(limit=30, test_share=0.27, test_limit=11)
    prompts(work, [work.file(scripts, "prompts.jsonl")], settings)
    ended = program("run", "--dry-run", "--set", "prompts.limit=30", "--set", "prompts.test_limit=11")
    rows = plan(ended.out)
    assert rows["scripts"][0] == "cached"
    assert rows["prompts"] == ["cached", "30"]
    assert rows["base"] == ["todo"]
    assert rows["generate_pairs"] == ["todo", "30", "30"]
    assert rows["evaluate"][:3] == ["todo", "11", "44"]


def test_the_plan_ends_at_the_stage_that_was_asked_for(program: Call) -> None:
    assert list(plan(program("run", "--dry-run", "--until", "pairs").out))[-2:] == ["pairs", "expected:"]


def test_the_judges_price_is_in_the_expected_cost(program: Call, tmp_path: Path) -> None:
    """1,000 prompts of one's own, 100 of them held out, at 0.30 and 2.50 USD per million tokens."""
    settings = ["--set", "sampling.max_tokens=100", "--settings", str(empty_settings(tmp_path))]
    rows = plan(program("run", "--dry-run", *settings, *local(prompts_file(tmp_path, 1000))).out)
    assert "scripts" not in rows
    # 1,800 calls of 900 + 300 tokens, 200 calls of 800 + 300
    assert rows["judge"] == ["todo", "900", "1,800", "1.84"]
    assert rows["evaluate"] == ["todo", "100", "400", "0.20"]
    assert rows["expected:"] == ["3,100", "calls,", "2.03", "USD"]


@pytest.mark.gcs
def test_a_plan_looks_no_further_than_the_run_would_go(
    program: Call, tmp_path: Path, gcs: FakeGCS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask the registry for the image wants credentials, and there are none."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none"))
    file = prompts_file(tmp_path, 30)
    values = ("kind=gke", "bucket=gs://bucket/runs", "gke.registry=us-docker.pkg.dev/project/repository")
    settings = ["--settings", str(empty_settings(tmp_path)), *local(file)]
    dry = ["run", "--dry-run", *settings, *(part for value in values for part in ("--set", f"place.{value}"))]
    bucket = Workshop(open_store("gs://bucket/runs"), tmp_path / "work")
    prompts(bucket, [file], PromptsSettings(paths=[str(file)]))
    give(bucket, tmp_path / "start")
    assert "no Google Cloud credentials" in program(*dry).error
    assert plan(program(*dry, "--until", "sft").out)["sft"] == ["cached"]


def test_a_judge_without_a_price_is_named_beside_the_cost(program: Call, tmp_path: Path) -> None:
    settings = ["--set", "judge.model=mine", "--settings", str(empty_settings(tmp_path))]
    ended = program("run", "--dry-run", *settings, *local(prompts_file(tmp_path, 50)))
    assert " USD, without evaluate, judge: the price of mine is not in judge.prices" in ended.out


def empty_settings(folder: Path) -> Path:
    file = folder / "defaults.yaml"
    file.write_text("{}")
    return file


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


@pytest.mark.parametrize("kind", ["gke", "modal"])
def test_the_doctor_misses_no_package_that_only_trains_where_training_is_elsewhere(
    program: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As in the worker's image."""
    monkeypatch.setattr(
        "flows.doctor.importlib.util.find_spec", lambda name: name not in ("torch", "trl", "peft") or None
    )
    monkeypatch.setattr("flows.doctor._cluster", lambda settings: [])
    lines = program("doctor", *local(prompts_file(tmp_path, 5)), "--set", f"place.kind={kind}").out.splitlines()
    assert [line for line in lines if "package" in line] == ["ok       package prefect", "ok       package openai"]


def test_the_doctor_finds_nothing_wrong_where_all_answers(
    program: Call, tmp_path: Path, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.doctor._packages", lambda training: [])
    replicas = f"{fake.url},{fake.url.replace('127.0.0.1', 'localhost')}"
    urls = ["--set", f"place.serve_url={replicas}", "--set", f"place.judge_url={fake.url}", "--set", "judge.model=fake"]
    ended = program("doctor", *local(prompts_file(tmp_path, 5)), *urls)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert f"ok       judge {fake.url}: serves fake" in lines
    assert [f"ok       vLLM {url}: serves fake" in lines for url in replicas.split(",")] == [True, True]


def test_the_doctor_says_that_the_data_folder_cannot_be_used(program: Call, data: Path) -> None:
    data.write_text("a file where the folder should be")
    ended = program("doctor")
    assert "something is missing" in ended.error
    assert "prevents everything" in ended.out
