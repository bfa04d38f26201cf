"""What several rooms' tests share: a store, a workshop, a fake endpoint and a client without patience."""

import functools
import os
import signal
import sqlite3
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from flows.server import prefect_server
from nothing_gpt import endpoint as client
from nothing_gpt.artifacts import Workshop
from nothing_gpt.config import Settings
from nothing_gpt.endpoint import Service
from nothing_gpt.processes import free_port
from nothing_gpt.store import Store, open_store
from tests import fake_gcs, kube
from tests.fake_endpoint import FakeEndpoint, serving

REPOSITORY = Path(__file__).parent.parent

# Where the tests are started in the background SIGINT is ignored, also by the programs that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Models this small lose by sharing work: with two threads a training takes nearly twice the CPU time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="session")
def one_tls_context() -> Iterator[None]:
    """An HTTP client makes a TLS context even for plain HTTP, which takes 60 ms: the tests share one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The kinds of store of a test that uses one, directly or through a workshop: a folder, and with the marker
    every_store each kind that can do what the test needs."""
    if "store" in metafunc.fixturenames:
        kinds: list[Any] = ["folder"]
        marked = {mark.name for mark in metafunc.definition.iter_markers()}
        if "every_store" in marked and "disk" not in marked:
            kinds.append(pytest.param("gcs", marks=pytest.mark.gcs))
            if "contended" not in marked:
                kinds.append(pytest.param("emulator", marks=pytest.mark.gcs))
        metafunc.parametrize("store", kinds, indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store: a folder, or a bucket of our fake or of the emulator."""
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    if request.param == "emulator":
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", request.getfixturevalue("emulator"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    else:
        request.getfixturevalue("gcs")
    return open_store(f"gs://{fake_gcs.BUCKET}/{tmp_path.name}")


@pytest.fixture
def gcs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_gcs.FakeGCS]:
    """A Cloud Storage server that does what a test asks for; this process and its children use it."""
    with fake_gcs.serving(tmp_path / "gcs") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield server


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    """The address of gcp-storage-emulator, a Cloud Storage server that is not ours."""
    from gcp_storage_emulator.server import RequestHandler, create_server

    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RequestHandler, "log_message", lambda *_: None)  # to the standard error, which tests look at
        with create_server("127.0.0.1", port, in_memory=True, default_bucket=fake_gcs.BUCKET):
            yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def cluster(emulator: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[kube.Cluster]:
    """A Kubernetes; its pods keep their store at the emulator."""
    with kube.running(tmp_path_factory.mktemp("kube"), emulator) as running:
        yield running


@pytest.fixture
def namespace(cluster: kube.Cluster) -> Iterator[str]:
    """A namespace of this test's own in the cluster."""
    with cluster.namespace() as name:
        yield name


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server of our own for all flows, those of child processes too."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    before = dict(os.environ)
    os.environ.pop("PREFECT_API_URL", None)
    data = tmp_path_factory.mktemp("prefect")
    try:
        with prefect_server(Settings.model_validate({"place": {"data": str(data)}})):
            names: dict[Any, str] = {
                PREFECT_API_URL: os.environ["PREFECT_API_URL"],
                PREFECT_HOME: os.environ["PREFECT_HOME"],
            }
            copy_database(Path(os.environ["PREFECT_HOME"]) / "prefect.db", data / "empty.db")
            with temporary_settings(names):
                yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def new_database(target: Path) -> None:
    """Spares a new server the making of its tables, which takes it 8 seconds."""
    target.parent.mkdir(parents=True)
    copy_database(Path(os.environ["PREFECT_HOME"]).parent / "empty.db", target)


def copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


@pytest.fixture
def workshop(store: Store, tmp_path: Path) -> Workshop:
    return Workshop(store, tmp_path / "work")


@pytest.fixture
def fake() -> Iterator[FakeEndpoint]:
    with serving() as endpoint:
        yield endpoint


@pytest.fixture
def service(fake: FakeEndpoint) -> Service:
    return Service(connect=lambda: fake.url, model="fake", identity="adapter-1")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's retries without their waits. No machine is so slow that an outage ends or a last row is given up."""
    monkeypatch.setattr(client, "_backoff", lambda attempt: 0.01)
    for limit in ("DEADLINE_S", "FIRST_ANSWER_S", "OUTAGE_S"):
        monkeypatch.setattr(client, limit, 60.0)


@pytest.fixture
def short_outages(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test of how an outage ends: after half a second."""
    monkeypatch.setattr(client, "DEADLINE_S", 0.5)


@pytest.fixture
def last_rows_given_up(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test of what becomes of rows that always fail: they are set aside soon where no others are left."""
    monkeypatch.setattr(client, "OUTAGE_S", 0.2)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def child() -> Iterator[Start]:
    """Starts a Python program with the repository importable; what still runs at the test's end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            cwd=REPOSITORY,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
