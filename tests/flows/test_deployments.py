"""The deployments at a real server, run by a real worker: by the script of the CI, by a schedule, after a kill. What
the flow asks are fakes, as in `test_dpo.py`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.events import emit_event
from prefect.events.schemas.automations import EventTrigger
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Crashed, Running, Scheduled
from pydantic import SecretStr

import flows.provision
from flows.provision import LIMITS, provision
from flows.record import last_run
from nothing_gpt.config import PlaceSettings, Settings
from nothing_gpt.given import give
from nothing_gpt.loading import PRESETS, Preset, compose, load_settings
from nothing_gpt.processes import Child
from nothing_gpt.serve.registry import read_registry
from nothing_gpt.workshops import bucket_workshop
from tests.chain.processes import REPOSITORY
from tests.fake_endpoint import says, serving
from tests.fake_gcs import FakeGCS
from tests.flows.conftest import Call
from tests.flows.deployed import (
    FILE,
    GROUPS,
    ended,
    eventually,
    faked,
    held,
    kept,
    options,
    parameters,
    repeated,
    retry,
    start,
    state,
    written,
)
from tests.flows.fakes import Engines, engines
from tests.flows.test_adapters import Stand


@pytest.mark.parametrize("name", ["embedded", "nightly", "sweep"])
def test_the_parameters_are_those_of_the_settings_file(name: str) -> None:
    parameters = {key: value for key, value in written()[name]["parameters"].items() if key in GROUPS}
    groups = Settings.model_validate(parameters)
    assert groups == load_settings(REPOSITORY / "deployments" / "embedded.yaml")


def test_the_gke_deployments_parameters_fit_together() -> None:
    parameters = dict(written()["gke"]["parameters"])
    settings = compose(load_settings(), parameters.pop("preset"), [])
    assert settings.training == load_settings(PRESETS / "recommended.yaml").training
    assert Settings.model_validate(parameters).place.kind == "gke"


def test_the_form_offers_every_preset() -> None:
    assert set(get_args(Preset)) == {file.stem for file in PRESETS.glob("*.yaml")}


def test_a_preset_wins_over_the_groups_and_overrides_win_over_both() -> None:
    groups = load_settings(overrides=["training.beta=0.3", "training.seed=7", "judge.votes=3"])
    settings = compose(groups, "noisy_judge", ["training.learning_rate=1e-4"])
    assert (settings.training.beta, settings.training.seed, settings.training.learning_rate) == (0.1, 7, 1e-4)
    assert (settings.training.loss_type, settings.judge.votes) == ("robust", 2)


# At a server.


def tell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=REPOSITORY, text=True, capture_output=True, timeout=200, check=False)


@pytest.fixture(scope="session")
def client(prefect: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="session")
def deployed(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """The deployments as the README says, by name."""
    provision(client)
    told = tell(sys.executable, "-m", "prefect", "deploy", "--all", "--no-prompt", "--prefect-file", str(FILE))
    assert told.returncode == 0, told.stdout + told.stderr
    return {found.name: found for found in client.read_deployments()}


@pytest.fixture(scope="session")
def fakes(client: SyncPrefectClient, deployed: object) -> dict[str, DeploymentResponse]:
    return faked(client)


@pytest.fixture
def slots(client: SyncPrefectClient) -> Iterator[None]:
    """So many that no run waits for one: that of a process that died is free after a minute only."""
    for name in ("endpoint", "judge"):
        client.upsert_global_concurrency_limit_by_name(name, 4)
    yield
    for name in ("endpoint", "judge"):
        client.upsert_global_concurrency_limit_by_name(name, LIMITS[name])


class Workers:
    """Workers of the pool `local`."""

    def __init__(self, log: Path):
        self._log = log
        self.running: list[Child] = []

    def start(self) -> Child:
        often = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local"]
        self.running.append(Child(command, self._log, often, REPOSITORY))
        return self.running[-1]

    def are_up(self) -> bool:
        return self._log.read_text().count("started!") == len(self.running)


@pytest.fixture(scope="session")
def workers(fakes: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """One worker, to begin with."""
    workers = Workers(tmp_path_factory.mktemp("worker") / "worker.log")
    workers.start()
    yield workers
    for worker in workers.running:
        worker.stop()


@pytest.fixture
def place(tmp_path: Path, prefect: None) -> Iterator[Engines]:
    with engines(tmp_path) as running:
        yield running


@pytest.mark.prefect
@pytest.mark.timeout(600)
def test_the_deployments_are_there_with_their_limits_and_their_form(deployed: dict[str, DeploymentResponse]) -> None:
    assert {name: found.tags for name, found in deployed.items()} == {
        "embedded": ["dpo", "embedded"], "nightly": ["dpo", "embedded", "nightly"], "gke": ["dpo", "gke"],
        "rollback": ["dpo", "embedded", "rollback"], "rollback-gke": ["dpo", "gke", "rollback"],
        "sweep": ["dpo", "embedded", "sweep"],
    }  # fmt: skip
    for found in deployed.values():
        assert found.description
        assert found.global_concurrency_limit
        assert found.global_concurrency_limit.limit == 1
    nightly = deployed["nightly"]
    assert nightly.concurrency_options
    assert nightly.concurrency_options.collision_strategy == "CANCEL_NEW"
    assert [schedule.active for schedule in nightly.schedules] == [False]
    schema = nightly.parameter_openapi_schema or {}
    for group in GROUPS:
        fields = schema["definitions"][Settings.model_fields[group].annotation.__name__]["properties"]  # type: ignore[union-attr]
        assert all("description" in field or "$ref" in field for field in fields.values()), group
    assert schema["definitions"]["TrainingSettings"]["properties"]["beta"]["exclusiveMinimum"] == 0
    assert "replaced as a whole" in schema["properties"]["training"]["description"]
    schema = deployed["rollback"].parameter_openapi_schema or {}
    assert schema["required"] == ["reason"]
    assert "why" in schema["properties"]["reason"]["description"].lower()


@pytest.mark.prefect
@pytest.mark.timeout(600)
def test_what_is_provided_stays_as_a_person_changed_it(client: SyncPrefectClient) -> None:
    provision(client)
    before = {found.name: found.id for found in client.read_automations()}
    (dead,) = client.read_automations_by_name("nothing-gpt: a dead run is marked")
    assert isinstance(dead.trigger, EventTrigger)
    assert "prefect.flow-run.Suspended" in dead.trigger.expect  # it waits for a person, and has no process
    client.upsert_global_concurrency_limit_by_name("judge", 5)
    provision(client)
    assert {found.name: found.id for found in client.read_automations()} == before
    assert client.read_global_concurrency_limit_by_name("judge").limit == 5
    client.upsert_global_concurrency_limit_by_name("judge", LIMITS["judge"])
    pools = {pool.name: pool for pool in client.read_work_pools()}
    assert {name: pool.type for name, pool in pools.items()} == {"local": "process", "gke": "process"}
    commands = {name: pool.base_job_template["variables"]["properties"]["command"] for name, pool in pools.items()}
    assert commands["local"]["default"] == f"{sys.executable} -m prefect.engine"
    assert commands["gke"]["default"] == "python -m prefect.engine"  # this machine's is not in the image


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


@pytest.mark.prefect
@pytest.mark.timeout(600)
def test_a_scheduled_run_starts_by_itself_and_one_that_would_overlap_is_cancelled(
    client: SyncPrefectClient, workers: Workers, fakes: dict[str, DeploymentResponse], place: Engines
) -> None:
    nightly = fakes["nightly"]
    schedule = DeploymentScheduleCreate(
        schedule=IntervalSchedule(interval=timedelta(seconds=4)),
        active=True,
        parameters=parameters(place, sampling__concurrency=1) | {"until": "generate_pairs"},
    )
    ours = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[nightly.id]))

    def states() -> set[str | None]:
        return {run.state_name for run in client.read_flow_runs(flow_run_filter=ours) if run.auto_scheduled}

    with held(place, 9):
        (made,) = client.create_deployment_schedules(nightly.id, [schedule])
        eventually(lambda: {"Running", "Cancelled"} <= states())
        client.delete_deployment_schedule(nightly.id, made.id)
    eventually(lambda: states() <= {"Completed", "Cancelled"})
    assert "Completed" in states()


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


# Approval.


def waits(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    """The run once it is suspended and its form is there."""

    def look() -> FlowRun | None:
        found = client.read_flow_run(run.id)
        keys = found.state.state_details.run_input_keyset if found.state and found.state.is_paused() else None
        inputs = client.filter_flow_run_input(run.id, keys["description"], limit=1, exclude_keys=set()) if keys else []
        return found if inputs else None

    return eventually(look)


@pytest.mark.prefect
@pytest.mark.timeout(900)
def test_a_run_that_waits_for_approval_leaves_its_place_and_goes_on_as_it_is_answered(
    client: SyncPrefectClient,
    workers: Workers,
    fakes: dict[str, DeploymentResponse],
    place: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHON", sys.executable)
    embedded = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[fakes["embedded"].id]))
    before = {run.id for run in client.read_flow_runs(flow_run_filter=embedded)}
    wanted = options(place, gate__approval="required")
    script = subprocess.Popen(
        ["scripts/run-deployment", "dpo-pipeline/embedded", *wanted],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    (run,) = eventually(
        lambda: [run for run in client.read_flow_runs(flow_run_filter=embedded) if run.id not in before]
    )
    waiting = waits(client, run)
    assert waiting.state
    keys: Any = waiting.state.state_details.run_input_keyset
    form = json.loads(client.read_flow_run_input(run.id, keys["description"]))
    assert "May it replace the starting adapter?" in form
    summary = json.loads(place.store.read(f"{last_run(place.store)}/summary.json") or b"{}")
    assert form.count("| starting adapter | candidate |") == min(10, summary["win_rate"]["n"])
    assert summary["waits_until"]

    # Another run of the deployment, of which one may run at once, does not find its place taken. Nobody answers it.
    soon = parameters(place, gate__approval="required", gate__approval_hours=0.001)
    second = ended(client, client.create_flow_run_from_deployment(fakes["embedded"].id, parameters=soon))
    assert (second.state_name, second.state and second.state.message) == (
        "Failed", "The flow was paused and never resumed."
    )  # fmt: skip

    answer = {"decision": "reject", "by": "Ada", "reason": "stale jokes"}
    assert client.resume_flow_run(run.id, run_input={"decision": "approve"}).status.value == "REJECT"  # by whom?
    client.resume_flow_run(run.id, run_input=answer)
    printed, _ = script.communicate(timeout=200)
    assert script.returncode == 1, printed
    assert "Failed: approval: rejected by Ada: stale jokes" in printed
    assert "Not promoted: the gate passed, but it was not approved" in printed
    assert read_registry(place.store).versions == []

    retry(client, run)
    waits(client, run)
    client.resume_flow_run(run.id, run_input=answer | {"decision": "approve", "reason": "they grew on me"})
    assert ended(client, run).state_name == "Completed"
    (version,) = read_registry(place.store).versions
    assert version.approval
    assert (version.approval.by, version.approval.reason) == ("Ada", "they grew on me")
    assert place.vllm.answers_like("seinfeld", place.store.root / version.artifact)
