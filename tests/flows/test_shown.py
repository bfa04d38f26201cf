"""What Prefect shows of a run, what it keeps of the secrets that the run was given, and a stage that is done again."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from pydantic import SecretStr

import tasks.shown
from flows.dpo import dpo_pipeline
from nothing_gpt.config import Settings
from tasks.place import Place
from tests.fake_endpoint import Answer, Request, fails
from tests.flows.fakes import PROMPTS, Engines, Trainer, engines
from tests.flows.test_dpo import eventually, logged, run_id, statuses, summary

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(300)]
pytest.importorskip("torch")


@pytest.fixture
def place(tmp_path: Path, prefect: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    monkeypatch.setattr(Place, "run", staticmethod(Trainer()))
    with engines(tmp_path) as running:
        yield running


def flow(place: Engines, until: str = "promote", refresh: tuple[str, ...] = (), **others: Any) -> State[Any]:
    settings = place.settings(**others)
    groups: dict[str, Any] = {name: getattr(settings, name) for name in Settings.model_fields}
    return dpo_pipeline(**groups, until=until, refresh=[*refresh], return_state=True)


def asked(kind: str, state: State[Any]) -> list[dict[str, Any]]:
    """Rows of the API on one run: its task runs or its artifacts."""
    with get_client(sync_client=True) as client:
        body = {"flow_runs": {"id": {"any_": [str(run_id(state))]}}}
        return client.request("POST", f"/{kind}/filter", json=body).json()  # type: ignore[arg-type]


def test_task_runs_say_how_much_they_do(place: Engines) -> None:
    state = flow(place, until="train")
    prompts = place.store.root / summary(place)["stages"]["prompts"]["artifact"]
    used = PROMPTS - len((prompts / "test.jsonl").read_bytes().splitlines())
    pairs = place.store.root / summary(place)["stages"]["pairs"]["artifact"] / "manifest.json"
    trained = json.loads(pairs.read_bytes())["counts"]["train"]
    wanted = {
        "prompts", "sft", f"generate_pairs · {used} prompts · 3 completions each", f"judge · {used} sets · 2 votes",
        f"pairs · {used} judged sets", f"train · {trained} pairs · 2 epochs",
    }  # fmt: skip
    assert eventually(lambda: {run["name"] for run in asked("task_runs", state)}, lambda seen: seen == wanted) == wanted


def test_every_stage_leaves_a_table_and_the_run_its_report_and_plots(place: Engines) -> None:
    state = flow(place)
    assert state.message == "Promoted: the new adapter is served as seinfeld"
    found = {artifact["key"]: artifact for artifact in asked("artifacts", state)}
    stages = {name.replace("_", "-") for name in statuses(place)}
    assert {key for key, artifact in found.items() if artifact["type"] == "table"} == stages
    assert {"figure": "failed", "value": 0} in json.loads(found["judge"]["data"])
    report = found["dpo-report"]["data"]
    assert report.startswith("# ✅ Promoted")
    assert summary(place)["stages"]["train"]["artifact"] in report
    images = [artifact["data"] for artifact in found.values() if artifact["type"] == "image"]
    assert len(images) >= 3
    assert all(image.startswith("data:image/svg+xml;base64,") for image in images)


def test_progress_moves_while_a_long_stage_works(place: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint waits after ten answers until they are shown, and after ten more until these are."""
    monkeypatch.setattr(tasks.shown, "SECONDS", 0.05)
    shown: list[float] = []
    both = [threading.Event(), threading.Event()]

    def told(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            result = real(*arguments)
            shown.append(next(value for value in arguments if isinstance(value, float)))
            for event in both[: len(set(shown))]:
                event.set()
            return result

        return call

    def wait(route: str, body: Any) -> None:
        for event, answered in zip(both, (10, 20), strict=True):
            if len(place.vllm.completions) > answered:
                assert event.wait(60)

    for name in ("create_progress_artifact", "update_progress_artifact"):
        monkeypatch.setattr(tasks.shown, name, told(getattr(tasks.shown, name)))
    place.vllm.before = wait
    state = flow(place, until="generate_pairs", sampling__concurrency=1)
    assert state.is_completed()
    assert len(set(shown)) >= 2
    (progress,) = (artifact for artifact in asked("artifacts", state) if artifact["type"] == "progress")
    assert (progress["key"], progress["data"]) == ("progress-generate", 100.0)


# Limits.


def test_without_its_limit_a_stage_does_not_run_and_one_line_says_what_to_do(place: Engines) -> None:
    with get_client(sync_client=True) as client:
        client.delete_global_concurrency_limit_by_name("judge")
        try:
            state = flow(place, until="judge")
        finally:
            client.upsert_global_concurrency_limit_by_name("judge", 1)
    assert state.is_failed()
    assert "python -m flows.provision" in (state.message or "")
    assert place.judge.requests == []


# Doing a stage again.


def test_a_refreshed_stage_asks_anew_and_the_next_run_keeps_what_it_said(place: Engines) -> None:
    flow(place, until="pairs")
    first, completions = len(place.judge.requests), len(place.vllm.completions)
    before = summary(place)["stages"]["judge"]["artifact"]
    flow(place, until="pairs", refresh=("judge",))
    assert len(place.judge.requests) == 2 * first
    assert len(place.vllm.completions) == completions
    assert {name for name, status in statuses(place).items() if status == "ran"} == {"judge"}  # the verdicts are equal
    after = summary(place)["stages"]["judge"]["artifact"]
    assert after != before
    assert place.store.read(f"{before}/manifest.json")
    flow(place, until="pairs")
    assert len(place.judge.requests) == 2 * first
    assert summary(place)["stages"]["judge"]["artifact"] == after


def test_a_refresh_that_failed_goes_on_with_its_own_replies(place: Engines) -> None:
    """A retry repeats the wish under the same name."""
    flow(place, until="pairs")
    first = len(place.judge.requests)
    answer = place.judge.answer

    def breaks_once(request: Request) -> Answer:
        return fails(401, "no") if len(place.judge.requests) == first + first // 2 else answer(request)

    place.judge.answer = breaks_once
    settings = place.settings(judge__concurrency=1)
    groups: dict[str, Any] = {name: getattr(settings, name) for name in Settings.model_fields}
    tried_twice = dpo_pipeline.with_options(retries=1, retry_delay_seconds=0)
    assert tried_twice(**groups, until="judge", refresh=["judge"], return_state=True).is_completed()
    assert len(place.judge.requests) == 2 * first + 1


# Secrets.

PLANTED = {
    name: f"planted-{name.lower().replace('_', '-')}-8c1f5b"
    for name in ("OPENAI_API_KEY", "SERVE_API_KEY", "HF_TOKEN", "WANDB_API_KEY")
}


def planted_in(folder: Path) -> list[str]:
    """Files that hold one of the secrets."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [str(file) for file in files for secret in PLANTED.values() if secret.encode() in file.read_bytes()]


def test_no_secret_is_in_any_log_artifact_parameter_file_or_row(
    place: Engines, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor where an endpoint repeats it in its complaint."""
    for name, secret in PLANTED.items():
        monkeypatch.setenv(name, secret)
    assert flow(place).is_completed()
    assert f"Bearer {PLANTED['OPENAI_API_KEY']}" in place.judge.authorization
    place.judge.answer = lambda request: fails(401, f"Incorrect API key provided: {PLANTED['OPENAI_API_KEY']}.")
    state = flow(place, refresh=("judge",))
    assert "401" in logged(state, "Finished in state Failed")
    home = Path(os.environ["PREFECT_HOME"])
    assert (home / "prefect.db").is_file()
    assert planted_in(home) == planted_in(place.folder) == []
    printed = capfd.readouterr()
    assert not any(secret in printed.out + printed.err for secret in PLANTED.values())


def test_a_secret_may_come_from_prefects_block(place: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    block: Any = Secret(value=SecretStr(PLANTED["OPENAI_API_KEY"]))
    block.save("openai-api-key")
    try:
        assert flow(place, until="judge").is_completed()
    finally:
        Secret.delete("openai-api-key")
    assert set(place.judge.authorization) == {f"Bearer {PLANTED['OPENAI_API_KEY']}"}
    assert "OPENAI_API_KEY" not in os.environ
    assert planted_in(Path(os.environ["PREFECT_HOME"])) == []
