"""What the tests of deployments share: a flow that trains nothing, an endpoint that pauses, what a server is asked."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.states import Scheduled

from nothing_gpt.config import Settings
from nothing_gpt.processes import Child
from tests.chain.processes import REPOSITORY
from tests.flows.fakes import Engines

FILE = REPOSITORY / "deployments" / "prefect.yaml"
GROUPS = [*Settings.model_fields]


def written() -> dict[str, dict[str, Any]]:
    """The deployments of the file, by name."""
    return {entry["name"]: entry for entry in yaml.safe_load(FILE.read_bytes())["deployments"]}


def faked(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """The server's deployments, by name, from now on all on this machine and of a flow that trains nothing."""
    here = [{"prefect.deployments.steps.set_working_directory": {"directory": str(REPOSITORY)}}]
    for found in client.read_deployments():
        entrypoint = re.sub(r"^flows/(dpo|sweep)\.py", "tests/flows/fake_flow.py", str(found.entrypoint))
        fake = DeploymentUpdate(entrypoint=entrypoint, work_pool_name="local", pull_steps=here)
        client.update_deployment(found.id, fake)
    return {found.name: found for found in client.read_deployments()}


def start(client: SyncPrefectClient, deployment: DeploymentResponse, place: Engines) -> FlowRun:
    """A run in that place up to the pairs, which asks for one completion after the other."""
    asked = parameters(place, sampling__concurrency=1) | {"until": "pairs"}
    return client.create_flow_run_from_deployment(deployment.id, parameters=asked)


@contextmanager
def held(place: Engines, answers: int) -> Iterator[None]:
    """The adapter's endpoint gives so many completions, and the others when this ends."""
    free = threading.Event()

    def wait(route: str, body: Any) -> None:
        if len(place.vllm.completions) >= answers:
            assert free.wait(300)

    place.vllm.before = wait
    try:
        yield
    finally:
        place.vllm.before = lambda route, body: None
        free.set()


def kept(place: Engines) -> int:
    """Completions that are safe from a kill."""
    files = (place.store.root / "journal" / "sampling").rglob("*.jsonl")
    return sum(len(file.read_bytes().splitlines()) for file in files)


def repeated(place: Engines) -> int:
    """Requests for a completion that had been asked for before."""
    asked = [json.dumps(request, sort_keys=True) for request in place.vllm.completions]
    return len(asked) - len(set(asked))


def parameters(place: Engines, **others: Any) -> dict[str, Any]:
    """The groups of a run in that place."""
    settings = place.settings(**others)
    return {name: getattr(settings, name).model_dump(mode="json") for name in GROUPS}


def options(place: Engines, **others: Any) -> list[str]:
    """The same for a shell."""
    return [
        part for name, group in parameters(place, **others).items() for part in ("-p", f"{name}={json.dumps(group)}")
    ]


def eventually(look: Callable[[], Any], timeout_s: float = 240) -> Any:
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


def state(client: SyncPrefectClient, run: FlowRun) -> str | None:
    return client.read_flow_run(run.id).state_name


def retry(client: SyncPrefectClient, run: FlowRun) -> None:
    """As the button does."""
    client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry", message="Retry from the UI"))


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


def tell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=REPOSITORY, text=True, capture_output=True, timeout=200, check=False)
