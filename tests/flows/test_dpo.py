"""The whole flow on a real Prefect server, in a place of one's own: what Prefect shows of it, what is done again and
what is not, and how it ends. The engines are fakes (see `fakes.py`); on real ones it runs in `tests/chain`.
"""

import json
import signal
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, LogFilter
from prefect.client.schemas.objects import State

from flows.dpo import dpo_pipeline
from flows.record import last_run
from nothing_gpt import artifacts
from nothing_gpt.adapters import adapter_digest
from nothing_gpt.config import Settings
from nothing_gpt.errors import FatalError, GateFailed, TransientError
from nothing_gpt.processes import free_port
from nothing_gpt.serve.registry import read_registry
from nothing_gpt.serve.switch import versioned_name
from tasks.generate_pairs import generate_pairs
from tasks.place import Place
from tasks.train import train
from tests.chain.processes import Command
from tests.conftest import new_database
from tests.fake_endpoint import Answer, fails
from tests.flows.conftest import Call, Ended
from tests.flows.fakes import Engines, Trainer

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(300)]
pytest.importorskip("torch")

CACHED = ("prompts", "sft", "generate_pairs", "judge", "pairs", "train", "evaluate")


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(Place, "run", staticmethod(trainer))
    for task in (generate_pairs, train):
        monkeypatch.setattr(task, "retry_delay_seconds", [0.01])
    return trainer


def flow(place: Engines, until: str = "promote", **others: Any) -> State[Any]:
    """Runs the flow and returns the state it ends in."""
    settings = place.settings(**others)
    groups: dict[str, Any] = {name: getattr(settings, name) for name in Settings.model_fields}
    return dpo_pipeline(**groups, until=until, return_state=True)


def summary(place: Engines) -> dict[str, Any]:
    """What the last run's record says."""
    return json.loads(place.store.read(f"{last_run(place.store)}/summary.json") or b"{}")


def statuses(place: Engines) -> dict[str, str]:
    return {name: stage["status"] for name, stage in summary(place)["stages"].items()}


def eventually(look: Callable[[], Any], until: Callable[[Any], bool]) -> Any:
    """What is seen once it is as it should be: Prefect writes task states and logs a moment later."""
    deadline = time.monotonic() + 90
    while not until(seen := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return seen


def shown(state: State[Any], tasks: int) -> dict[str, str]:
    """The name of each task's state, as Prefect's UI shows it, by the task's name without its numbers."""
    runs = FlowRunFilter.model_validate({"id": {"any_": [state.state_details.flow_run_id]}})

    def look() -> dict[str, str]:
        with get_client(sync_client=True) as client:
            found = client.read_task_runs(flow_run_filter=runs)
        return {run.name.partition(" · ")[0]: run.state_name or "" for run in found}

    ended = ("Completed", "Cached", "Failed")
    return eventually(look, lambda seen: len(seen) == tasks and all(name in ended for name in seen.values()))


def logged(state: State[Any], line: str) -> str:
    """The run's log in Prefect, once it holds the line."""
    logs = LogFilter.model_validate({"flow_run_id": {"any_": [state.state_details.flow_run_id]}})

    def look() -> str:
        with get_client(sync_client=True) as client:
            return "\n".join(log.message for log in client.read_logs(logs))

    return eventually(look, lambda seen: line in seen)


# What a run does, and does again.


def test_a_first_run_promotes_the_candidate(place: Engines, trainer: Trainer) -> None:
    state = flow(place)
    assert state.is_completed()
    run = summary(place)
    assert set(statuses(place).values()) == {"ran"}
    assert (run["win_rate"]["value"], run["gate"]["passed"]) == (1.0, True)
    assert run["cost_usd"] > 0
    registry = read_registry(place.store)
    candidate = place.store.root / registry.versions[0].artifact
    assert place.vllm.answers_like("seinfeld", candidate)
    assert run["promoted"] == {"name": "seinfeld", "version": 1, "fingerprint": registry.versions[0].fingerprint}
    assert shown(state, 9) == dict.fromkeys([*CACHED, "gate", "promote"], "Completed")


def test_the_report_is_kept_beside_the_summary(place: Engines, trainer: Trainer) -> None:
    flow(place)
    assert b"<html" in (place.store.read(f"{last_run(place.store)}/report.html") or b"")


def run_id(state: State[Any]) -> Any:
    return state.state_details.flow_run_id


def test_a_second_run_is_cached_up_to_the_evaluation_and_asks_nobody(place: Engines, trainer: Trainer) -> None:
    flow(place)
    calls, loads = place.calls, len(place.vllm.loads)
    state = flow(place)
    assert shown(state, 9) == dict.fromkeys(CACHED, "Cached") | {"gate": "Completed", "promote": "Completed"}
    assert (place.calls, len(place.vllm.loads), trainer.runs) == (calls, loads, 1)
    assert summary(place)["cost_usd"] == 0
    assert len(read_registry(place.store).versions) == 1


def test_a_run_begins_by_giving_a_server_that_was_restarted_the_promoted_adapter_back(
    place: Engines, trainer: Trainer
) -> None:
    flow(place)
    place.vllm.serve("seinfeld", place.start)
    state = flow(place, until="sft")
    assert f"serves 'seinfeld' from {place.start}: not what" in logged(state, "seinfeld is version 1 again")
    registry = read_registry(place.store)
    assert place.vllm.answers_like("seinfeld", place.store.root / registry.versions[0].artifact)
    assert len(registry.versions) == 1


def test_an_artifact_whose_file_is_gone_is_made_again_and_nothing_else(place: Engines, trainer: Trainer) -> None:
    flow(place)
    pairs = next(place.store.root.glob("pairs/*/train.jsonl"))
    whole = pairs.read_bytes()
    pairs.unlink()
    flow(place)
    assert pairs.read_bytes() == whole
    ran = {name for name, status in statuses(place).items() if status == "ran"}
    assert ran == {"pairs", "gate", "promote"}


def test_a_new_judge_keeps_the_completions(place: Engines, trainer: Trainer) -> None:
    flow(place, until="pairs")
    asked = len(place.vllm.completions)
    flow(place, until="pairs", judge__seed=7, judge__votes=1)
    assert len(place.vllm.completions) == asked
    assert statuses(place) | {"prompts": "cached", "sft": "cached", "generate_pairs": "cached"} == statuses(place)
    assert statuses(place)["judge"] == "ran"


def test_a_run_goes_no_further_than_it_was_asked_to(place: Engines, trainer: Trainer) -> None:
    state = flow(place, until="pairs")
    assert state.is_completed()
    assert list(statuses(place)) == ["sft", "prompts", "generate_pairs", "judge", "pairs"]
    assert trainer.runs == 0
    assert set(shown(state, 5)) == set(statuses(place))


def test_a_promotion_leaves_earlier_completions_valid(place: Engines, trainer: Trainer) -> None:
    """The starting adapter is asked for under a name of its own, and never under the stable one."""
    flow(place, until="evaluate")
    own = f"seinfeld-{adapter_digest(place.start)[:12]}"
    sampled = {request["model"] for request in place.vllm.completions}
    assert own in sampled
    assert "seinfeld" not in sampled


# Errors.


def test_a_second_round_samples_from_the_promoted_version_and_trains_it(place: Engines, trainer: Trainer) -> None:
    flow(place)
    (first,) = read_registry(place.store).versions
    flow(place, until="train", training__starting_version=1)
    assert place.vllm.completions[-1]["model"] == versioned_name("seinfeld", first.digest)
    manifest = json.loads(place.store.read(f"{summary(place)['stages']['train']['artifact']}/manifest.json") or b"{}")
    assert manifest["lineage"]["adapter"] == first.artifact
    flow(place, until="train", training__starting_version=1)
    assert set(statuses(place).values()) == {"cached"}


def test_a_round_from_a_version_that_was_never_promoted_is_refused(place: Engines, trainer: Trainer) -> None:
    state = flow(place, training__starting_version=3)
    assert "no promoted version 3 here" in str(state.message)


def test_a_training_that_was_interrupted_is_tried_again(place: Engines, trainer: Trainer) -> None:
    trainer.errors = [TransientError("preempted"), TransientError("preempted")]
    assert flow(place).is_completed()
    assert trainer.runs == 3


def test_a_fatal_error_is_not_tried_again(place: Engines, trainer: Trainer) -> None:
    trainer.errors = [FatalError("the disk is full; make room")]
    state = flow(place)
    assert state.is_failed()
    assert trainer.runs == 1
    assert shown(state, 6)["train"] == "Failed"
    assert summary(place)["error"] == "the disk is full; make room"


def test_an_error_is_one_line_in_prefects_log_without_a_traceback(place: Engines, trainer: Trainer) -> None:
    trainer.errors = [FatalError("the disk is full; make room")]
    log = logged(flow(place), "Finished in state Failed")
    assert "the disk is full; make room" in log
    assert "Traceback" not in log


def test_after_a_failure_the_next_run_goes_on_where_it_stopped(place: Engines, trainer: Trainer) -> None:
    trainer.errors = [FatalError("the disk is full; make room")]
    flow(place)
    calls = len(place.judge.requests)
    assert flow(place).is_completed()
    assert {name for name, status in statuses(place).items() if status == "cached"} == set(CACHED) - {
        "train",
        "evaluate",
    }
    assert trainer.runs == 2
    assert calls > 0


def test_a_failed_gate_fails_the_flow_with_every_reason_and_promotes_nothing(place: Engines, trainer: Trainer) -> None:
    state = flow(place, gate__min_accuracy=0.99, gate__min_win_rate=0.99)
    assert state.is_failed()
    error = state.result(raise_on_failure=False)
    assert isinstance(error, GateFailed)
    assert "evaluation accuracy 0.800" in str(error)
    assert "win rate against the starting adapter 1.000" in str(error)
    assert "margin" not in str(error)
    assert "promote" not in statuses(place)
    assert summary(place)["promoted"] is None
    assert read_registry(place.store).versions == []
    assert place.vllm.answers_like("seinfeld", place.start)
    assert "its lower bound must exceed 0.99" in logged(state, "Finished in state Failed")


# Two at once.


def test_of_two_runs_at_once_the_second_waits_and_takes_over(
    place: Engines, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(artifacts, "say", said.append)
    trainer.may_end.clear()
    with get_client(sync_client=True) as client:  # else the second would wait for Prefect, not for the store
        client.upsert_global_concurrency_limit_by_name("gpu", 2)
    with ThreadPoolExecutor() as pool:
        first, second = (pool.submit(copy_context().run, flow, place) for _ in range(2))
        eventually(lambda: list(said), lambda lines: any("train-" in line for line in lines))
        trainer.may_end.set()
        states = [first.result(60), second.result(60)]
    assert [state.is_completed() for state in states] == [True, True]
    assert any(line.startswith("waiting for another run that is at work on train-") for line in said)
    assert trainer.runs == 1
    assert sorted(shown(state, 9)["train"] for state in states) == ["Cached", "Completed"]
    assert len(read_registry(place.store).versions) == 1


# The program.


@pytest.fixture
def run(call: Call, place: Engines, trainer: Trainer) -> Call:
    """`nothing-gpt run` in this process, on the server of this file."""
    return lambda *arguments, **others: call("run", *arguments, *place.options(**others))


def the_error(ended: Ended) -> str:
    """The one line that it complained with, among what Prefect logs."""
    (line,) = (line for line in ended.err.splitlines() if line.startswith("error: "))
    return line


def test_the_program_ends_well_at_the_stage_it_was_asked_for(place: Engines, run: Call) -> None:
    ended = run("--until", "pairs")
    assert ended.code == 0
    assert "Not promoted: the run ended after pairs" in ended.out
    assert list(statuses(place))[-1] == "pairs"


def no_model(place: Engines) -> dict[str, Any]:
    place.judge.answer = lambda request: fails(404, "no such model")
    return {"judge__model": "other"}


def html(place: Engines) -> dict[str, Any]:
    page = Answer(body=b"<html>hello</html>", content_type="text/html")
    place.judge.answer, place.judge.models = lambda request: page, page
    return {}


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [(no_model, "does not serve 'other'; it serves: judge"), (html, "not an OpenAI-compatible endpoint")],
)
def test_a_judge_that_is_none_is_one_line_and_what_was_sampled_is_kept(
    place: Engines, run: Call, broken: Callable[[Engines], dict[str, Any]], complaint: str
) -> None:
    ended = run(**broken(place))
    assert ended.code == 1
    assert complaint in the_error(ended)
    assert statuses(place)["generate_pairs"] == "ran"
    assert statuses(place)["judge"] == "failed"


def test_a_vllm_that_refuses_connections_is_one_line(place: Engines, run: Call) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    ended = run(place__serve_url=url)
    assert ended.code != 0
    assert f"nothing answers at {url}" in the_error(ended)


def as_a_process(place: Engines, **others: Any) -> tuple[int, list[str]]:
    """`nothing-gpt run` as a process: its exit code and the lines it printed. No process of it is left."""
    command = Program("run", *place.options(**others), log=place.folder / "program.log")
    code = command.wait(100)
    assert command.alive() == []
    return code, [line.rstrip() for line in command.output.splitlines() if line.strip()]


class Program(Command):
    """The program, but it trains nothing. It hears Ctrl-C even where a shell started the tests in the background."""

    entry = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from tests.flows.fakes import program; program()"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_asked_to_stop_it_ends_the_stage_at_work_and_leaves_nothing_behind(
    place: Engines, number: signal.Signals, code: int
) -> None:
    place.vllm.before = lambda route, body: time.sleep(0.3)  # 40 prompts, one at a time
    options = place.options(sampling__concurrency=1)
    command = Program("run", *options, log=place.folder / "program.log")
    eventually(lambda: len(place.vllm.completions), lambda asked: asked > 2)
    command.process.send_signal(number)
    assert command.wait(60) == code
    assert command.alive() == []
    assert 2 < len(place.vllm.completions) < 20
    assert "Traceback" not in command.output


def test_a_failed_gate_is_exit_code_3_and_leaves_no_server_behind(
    place: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = place.data / "prefect" / "prefect.db"
    new_database(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE concurrency_limit_v2 SET active_slots = 1")  # of a run that was killed: it is over
    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.delenv(name)
    code, lines = as_a_process(place, gate__min_win_rate=0.99)
    assert code == 3
    assert lines[-1].startswith("error: gate: not promoted, because win rate against the starting adapter 1.000 ")
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
    assert any("NOT MET" in line for line in lines)
    assert (place.data / "report.html").is_file()
    assert read_registry(place.store).versions == []
    assert place.vllm.answers_like("seinfeld", place.start)
