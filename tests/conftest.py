"""What several rooms' tests share: a store, a workshop, a fake endpoint and a client without patience."""

import functools
import os
import signal
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from nothing_gpt import endpoint as client
from nothing_gpt.artifacts import Workshop
from nothing_gpt.endpoint import Service
from nothing_gpt.store import Store, open_store
from tests.fake_endpoint import FakeEndpoint, serving

REPOSITORY = Path(__file__).parent.parent

settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="session")
def one_tls_context() -> Iterator[None]:
    """An HTTP client makes a TLS context even for plain HTTP, which takes 60 ms: the tests share one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


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
