"""The deployments at a real server, run by a real worker: by the script of the CI, by a schedule, after a kill. What
the flow asks are fakes, as in `test_dpo.py`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.states import Crashed, Scheduled

from flows.provision import LIMITS, provision
from nothing_gpt.config import Settings
from nothing_gpt.loading import PRESETS, Preset, compose, load_settings
from nothing_gpt.processes import Child
from nothing_gpt.serve.registry import read_registry
from tests.chain.processes import REPOSITORY
from tests.flows.fakes import Engines, engines

FILE = REPOSITORY / "deployments" / "prefect.yaml"
GROUPS = [*Settings.model_fields]


def written() -> dict[str, dict[str, Any]]:
    """The deployments of the file, by name."""
    return {entry["name"]: entry for entry in yaml.safe_load(FILE.read_bytes())["deployments"]}


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


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *arguments]


def tell(*arguments: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=REPOSITORY, text=True, capture_output=True, timeout=timeout, check=False)


@pytest.fixture(scope="session")
def client(prefect: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="session")
def deployed(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """The deployments as the README says, by name."""
    provision(client)
    told = tell(*command("deploy", "--all", "--no-prompt", "--prefect-file", "deployments/prefect.yaml"))
    assert told.returncode == 0, told.stdout + told.stderr
    return {found.name: found for found in client.read_deployments()}


@pytest.fixture(scope="session")
def fake(client: SyncPrefectClient, deployed: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same deployments on this machine, but of a flow that trains nothing."""
    file = tmp_path_factory.mktemp("fake") / "prefect.yaml"
    entries = written()
    del entries["gke"]["pull"]
    for entry in entries.values():
        entry |= {"entrypoint": f"tests/flows/fake_flow.py:{entry['entrypoint'].partition(':')[2]}"}
        entry["work_pool"]["name"] = "local"
    file.write_text(yaml.safe_dump({"name": "nothing-gpt", "deployments": [*entries.values()]}))
    told = tell(*command("deploy", "--all", "--no-prompt", "--prefect-file", str(file)))
    assert told.returncode == 0, told.stdout + told.stderr


class Workers:
    """Workers of the pool `local`."""

    def __init__(self, log: Path):
        self._log = log
        self.running: list[Child] = []

    def start(self) -> Child:
        often = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PYTHONPATH": str(REPOSITORY)}
        self.running.append(Child(command("worker", "start", "--pool", "local"), self._log, often, REPOSITORY))
        return self.running[-1]


@pytest.fixture(scope="session")
def workers(fake: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
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


def parameters(place: Engines, **others: Any) -> dict[str, Any]:
    """The groups of a run in that place."""
    settings = place.settings(**others)
    return {name: getattr(settings, name).model_dump(mode="json") for name in GROUPS}


def options(place: Engines, **others: Any) -> list[str]:
    """The same for a shell."""
    return [
        part for name, group in parameters(place, **others).items() for part in ("-p", f"{name}={json.dumps(group)}")
    ]


def eventually(look: Callable[[], Any], timeout_s: float = 150) -> Any:
    """What is seen once it is true."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert seen
    return seen


def ended(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    def look() -> FlowRun | None:
        found = client.read_flow_run(run.id)
        return found if found.state and found.state.is_final() else None

    return eventually(look)


@pytest.mark.prefect
@pytest.mark.timeout(300)
def test_the_deployments_are_there_with_their_limits_and_their_form(deployed: dict[str, DeploymentResponse]) -> None:
    assert {name: found.tags for name, found in deployed.items()} == {
        "embedded": ["dpo", "embedded"], "nightly": ["dpo", "embedded", "nightly"], "gke": ["dpo", "gke"],
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


@pytest.mark.prefect
@pytest.mark.timeout(300)
def test_what_is_provided_stays_as_a_person_changed_it(client: SyncPrefectClient) -> None:
    provision(client)
    before = {found.name: found.id for found in client.read_automations()}
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
@pytest.mark.timeout(300)
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
@pytest.mark.timeout(300)
def test_a_run_whose_worker_was_killed_goes_on_when_it_is_retried(
    client: SyncPrefectClient, workers: Workers, deployed: dict[str, DeploymentResponse], place: Engines
) -> None:
    place.vllm.before = lambda route, body: time.sleep(0.2)
    run = client.create_flow_run_from_deployment(
        deployed["embedded"].id,
        parameters=parameters(place, sampling__concurrency=1) | {"preset": None, "until": "pairs"},
    )
    eventually(lambda: len(place.vllm.completions) > 3)
    children = psutil.Process(workers.running[-1].pid).children(recursive=True)
    os.kill(workers.running[-1].pid, signal.SIGKILL)
    psutil.wait_procs(children, 30)
    assert not any(child.is_running() for child in children)
    answered = len(place.vllm.completions)
    place.vllm.before = lambda route, body: None
    client.set_flow_run_state(run.id, Crashed(message="what the automation does"))
    workers.start()
    client.set_flow_run_state(
        run.id, Scheduled(name="AwaitingRetry", message="Retry from the UI")
    )  # as the button does
    assert ended(client, run).state_name == "Completed"
    prompts = {json.dumps(request["messages"]) for request in place.vllm.completions}
    # One request a completion here; repeated are the one in flight and those of the last second.
    assert len(place.vllm.completions) <= 3 * len(prompts) + 6
    assert answered < len(place.vllm.completions)


@pytest.mark.prefect
@pytest.mark.timeout(300)
def test_a_scheduled_run_starts_by_itself_and_one_that_would_overlap_is_cancelled(
    client: SyncPrefectClient, workers: Workers, deployed: dict[str, DeploymentResponse], place: Engines
) -> None:
    nightly = deployed["nightly"]
    place.vllm.before = lambda route, body: time.sleep(0.5)
    schedule = DeploymentScheduleCreate(
        schedule=IntervalSchedule(interval=timedelta(seconds=10)),
        active=True,
        parameters=parameters(place, sampling__concurrency=1) | {"until": "generate_pairs"},
    )
    (made,) = client.create_deployment_schedules(nightly.id, [schedule])
    ours = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[nightly.id]))

    def states() -> set[str | None]:
        return {run.state_name for run in client.read_flow_runs(flow_run_filter=ours)}

    eventually(lambda: {"Running", "Cancelled"} <= states())
    client.delete_deployment_schedule(nightly.id, made.id)
    place.vllm.before = lambda route, body: None
    eventually(lambda: states() <= {"Completed", "Cancelled"})
    assert "Completed" in states()
