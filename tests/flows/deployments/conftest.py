"""The deployments at a real server, and real workers. What the flows ask are fakes, as in `test_dpo.py`."""

import sys
from collections.abc import Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import DeploymentResponse

from flows.provision import LIMITS, provision
from tests.flows.deployed import FILE, Workers, faked, tell


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


@pytest.fixture(scope="session")
def workers(fakes: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """One worker, to begin with."""
    workers = Workers(tmp_path_factory.mktemp("worker") / "worker.log")
    workers.start()
    yield workers
    for worker in workers.running:
        worker.stop()
