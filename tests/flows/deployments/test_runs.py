"""Runs of deployments, done by a real worker: by the script of the CI, in a cluster, by a schedule, after a kill."""

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import emit_event
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Crashed, Running, Scheduled
from pydantic import SecretStr

import flows.provision
from flows.provision import provision
from nothing_gpt.config import PlaceSettings
from nothing_gpt.given import give
from nothing_gpt.serve.registry import read_registry
from nothing_gpt.workshops import bucket_workshop
from tests.fake_endpoint import says, serving
from tests.fake_gcs import FakeGCS
from tests.flows.conftest import Call
from tests.flows.deployed import (
    Workers,
    ended,
    eventually,
    held,
    kept,
    options,
    parameters,
    repeated,
    retry,
    start,
    state,
    tell,
)
from tests.flows.fakes import Engines, engines
from tests.flows.test_adapters import Stand


@pytest.fixture(scope="module", autouse=True)
def nightly(
    client: SyncPrefectClient,
    workers: Workers,
    fakes: dict[str, DeploymentResponse],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[FlowRunFilter]:
    """The runs of two schedules of one deployment, both for the same minute. It is a minute or two ahead: whoever looks
    at them after most others need not wait; who kills their worker comes after that."""
    then, nightly = datetime.now(UTC) + timedelta(minutes=2), fakes["nightly"]
    with engines(tmp_path_factory.mktemp("nightly")) as place:
        schedule = DeploymentScheduleCreate(
            schedule=CronSchedule(cron=f"{then.minute} {then.hour} * * *", timezone="Etc/UTC"),
            active=True,
            parameters=parameters(place) | {"until": "generate_pairs"},
        )
        made = [*client.create_deployment_schedules(nightly.id, [schedule, schedule])]
        yield FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[nightly.id]))
        for one in made:
            client.delete_deployment_schedule(nightly.id, one.id)


@pytest.mark.prefect
@pytest.mark.timeout(600)
def test_the_script_of_the_ci_ends_well_only_where_the_adapter_was_promoted(
    workers: Workers, place: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = place.folder / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("PYTHON", sys.executable)
    refused = tell("scripts/run-deployment", "dpo-pipeline/gke", *options(place, gate__min_win_rate=0.99))
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "gate: not promoted, because win rate against the starting adapter 1.000" in summary.read_text()
    summary.unlink()
    promoted = tell("scripts/run-deployment", "dpo-pipeline/gke", *options(place))
    assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    assert summary.read_text().startswith("Completed: Promoted: the new adapter is served as seinfeld\n\n# ✅ Promoted")
    assert len(read_registry(place.store).versions) == 1
    wrong = tell("scripts/run-deployment", "dpo-pipeline/gke", "-p", 'training={"beta": -1}')
    assert wrong.returncode == 1
    assert "beta" in wrong.stdout + wrong.stderr


@pytest.mark.prefect
@pytest.mark.gcs
@pytest.mark.timeout(600)
def test_a_run_in_the_cluster_needs_no_file_of_the_worker_and_leaves_prefects_result_in_the_bucket(
    client: SyncPrefectClient, workers: Workers, fakes: dict[str, DeploymentResponse], place: Engines, gcs: FakeGCS
) -> None:
    here = PlaceSettings(bucket="gs://bucket/runs", data=str(place.folder / "here"))
    prompts, adapter = (give(bucket_workshop(here), path).key for path in (place.prompts, place.start))
    place.prompts.unlink()
    shutil.rmtree(place.start)
    chosen = parameters(
        place,
        place__kind="gke",
        place__bucket=here.bucket,
        place__sft_adapter=adapter,
        place__gke__image="registry/train@sha256:0",
        prompts__paths=json.dumps([prompts]),
    )
    run = client.create_flow_run_from_deployment(
        fakes["gke"].id,
        parameters=chosen | {"preset": None},
        job_variables={"env": {name: os.environ[name] for name in ("STORAGE_EMULATOR_HOST", "XDG_CACHE_HOME")}},
    )
    state = ended(client, run).state
    assert state is not None
    assert state.type == StateType.COMPLETED, state.message
    assert f"runs/prefect/{state.data.storage_key}" in gcs.objects
    tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    assert {task.name: task.state_name for task in tasks}["image"] == "Cached"


@pytest.mark.prefect
@pytest.mark.timeout(600)
def test_the_current_adapter_is_taken_back_from_the_ui_with_a_reason(
    client: SyncPrefectClient, workers: Workers, fakes: dict[str, DeploymentResponse], place: Engines, call: Call
) -> None:
    stand = Stand.at(place, call)
    first, second = stand.trained(0.5), stand.trained(0.75)
    for adapter in (first, second):
        stand.register(adapter)
    where = {"place": parameters(place)["place"]}
    with pytest.raises(PrefectHTTPStatusError, match=r"422|409"):
        client.create_flow_run_from_deployment(fakes["rollback"].id, parameters=where | {"reason": ""})
    run = client.create_flow_run_from_deployment(fakes["rollback"].id, parameters=where | {"reason": "too rude"})
    ending = ended(client, run).state
    assert ending
    assert (ending.name, ending.message) == ("Completed", "seinfeld is version 1 again")
    assert stand.serves(first)
    taken_back = stand.registry.versions[1].taken_back
    assert taken_back
    assert (taken_back.reason, taken_back.by) == ("too rude", f"Prefect's run {run.name}")


@pytest.mark.prefect
@pytest.mark.timeout(600)
def test_a_run_that_died_and_one_that_nobody_takes_are_marked_and_reported(
    client: SyncPrefectClient, fakes: dict[str, DeploymentResponse], place: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the least patience that Prefect allows."""
    for name in ("DEAD_AFTER", "LATE_FOR"):
        monkeypatch.setattr(flows.provision, name, timedelta(seconds=10))
    with serving() as people:
        people.answer = lambda request: says("heard")
        block: Any = Webhook(url=SecretStr(f"{people.url}/chat/completions"), allow_private_urls=True)
        block.save("nothing-gpt")
        provision(client)
        dead, late = (tomorrow(client, fakes["embedded"], place) for _ in range(2))
        client.set_flow_run_state(late.id, Scheduled(name="Late", scheduled_time=late.expected_start_time), force=True)
        client.set_flow_run_state(dead.id, Running(), force=True)
        beat(dead)
        try:
            assert {ended(client, run).state_name for run in (dead, late)} == {"Crashed"}
            eventually(lambda: len(people.requests) >= 2)
        finally:
            monkeypatch.undo()
            Webhook.delete("nothing-gpt")
            (report,) = client.read_automations_by_name("nothing-gpt: a crashed run is reported")
            client.delete_automation(report.id)
            provision(client)
    assert {request["text"] for request in people.requests} == {
        f"{dead.name} of dpo-pipeline crashed: Its process died or lost its machine; Retry goes on where it stopped.",
        f"{late.name} of dpo-pipeline crashed: No worker took it for an hour; start one and press Retry.",
    }


def tomorrow(client: SyncPrefectClient, deployment: DeploymentResponse, place: Engines) -> FlowRun:
    """A run that no worker takes today."""
    then = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
    return client.create_flow_run_from_deployment(deployment.id, parameters=parameters(place), state=then)


def beat(run: FlowRun) -> None:
    """As the run's process does."""
    emit_event(
        "prefect.flow-run.heartbeat",
        {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name},
        related=[
            {
                "prefect.resource.id": f"prefect.flow.{run.flow_id}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": "dpo-pipeline",
            }
        ],
    )


@pytest.mark.prefect
@pytest.mark.timeout(600)
def test_a_scheduled_run_starts_by_itself_and_one_that_would_overlap_is_cancelled(
    client: SyncPrefectClient, nightly: FlowRunFilter
) -> None:
    def states() -> Counter[str | None]:
        """How many runs are in each, but for those of the nights to come."""
        found = Counter(run.state_name for run in client.read_flow_runs(flow_run_filter=nightly))
        del found["Scheduled"]
        return found

    eventually(lambda: states() == {"Completed": 1, "Cancelled": 1})


@pytest.mark.prefect
@pytest.mark.timeout(600)
def test_a_run_whose_worker_was_killed_goes_on_when_it_is_retried(
    client: SyncPrefectClient, workers: Workers, fakes: dict[str, DeploymentResponse], place: Engines, slots: None
) -> None:
    with held(place, 40):
        run = start(client, fakes["embedded"], place)
        eventually(lambda: kept(place) >= 40)
        children = psutil.Process(workers.running[-1].pid).children(recursive=True)
        os.kill(workers.running[-1].pid, signal.SIGKILL)
        psutil.wait_procs(children, 30)
        assert not any(child.is_running() for child in children)
    client.set_flow_run_state(run.id, Crashed(message="what the automation does"))
    workers.start()
    retry(client, run)
    assert ended(client, run).state_name == "Completed"
    assert repeated(place) <= 1  # the one in flight


@pytest.mark.prefect
@pytest.mark.timeout(600)
def test_of_two_workers_one_does_each_run_and_a_stage_of_both_is_done_once(
    client: SyncPrefectClient, workers: Workers, fakes: dict[str, DeploymentResponse], place: Engines, slots: None
) -> None:
    workers.start()
    eventually(workers.are_up)
    with held(place, 40):
        runs = [start(client, fakes[name], place) for name in ("embedded", "gke")]
        eventually(lambda: [state(client, run) for run in runs] == ["Running"] * 2)
    assert [ended(client, run).state_name for run in runs] == ["Completed"] * 2
    for run in runs:
        names = [found.name for found in client.read_flow_run_states(run.id)]
        assert [names.count(name) for name in ("Pending", "Running", "Completed")] == [1, 1, 1]
    assert repeated(place) == 0
