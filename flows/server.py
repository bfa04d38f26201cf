"""Prefect's server: one of our own for the length of one command, or the one that `make ui` keeps up. Both have their
database in the data folder, where later commands and the UI find all runs again.

Prefect would start a temporary server by itself, but that one lives on when its flow is killed.
"""

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from nothing_gpt.config import Settings
from nothing_gpt.errors import FatalError
from nothing_gpt.processes import Child, free_port
from nothing_gpt.store import reporting_disk

START_SECONDS = 120
FLUSH_SECONDS = 10


@contextmanager
def prefect_server(settings: Settings) -> Iterator[None]:
    """Points Prefect, which must not be imported yet, at a server with our limits: the one that PREFECT_API_URL names,
    the one of `make ui`, or our own.

    Raises:
        FatalError: the server does not start, or wants another PREFECT_API_AUTH_STRING.
    """
    data = Path(settings.place.data)
    if "PREFECT_API_URL" in os.environ:
        _provide_limits()
        yield
        return
    # Our own lines are on the terminal; Prefect's are in the run's log, where its UI shows them.
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    if url := kept_up(data):
        os.environ.update(environment(data, url))
        _provide_limits()
        yield
        return
    with alone_on(data) as alone, own_server(data, free_port()):
        _provide_limits(free=alone)
        try:
            yield
        finally:
            _send_what_is_queued()


@contextmanager
def alone_on(data: Path) -> Iterator[bool]:
    """Whether no other command has a server of its own on the data folder: then whoever held a slot there has died."""
    home = home_of(data)
    with reporting_disk(home):
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "own.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield alone


@contextmanager
def own_server(data: Path, port: int) -> Iterator[Child]:
    """A server on this port of this machine alone, with its database in the data folder, once it answers. What is
    imported or started from here uses it.

    Raises:
        FatalError: the server does not start.
    """
    url, log = f"http://127.0.0.1:{port}", data / "logs" / "prefect.log"
    os.environ.update(environment(data, url))
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with Child(command, log) as server:
        _wait(server, f"{url}/api/health", log)
        yield server


def environment(data: Path, url: str) -> dict[str, str]:
    """What Prefect's programs read of the server at `url`."""
    own = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    return {
        "PREFECT_HOME": str(home_of(data)),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_SERVER_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # In memory, a restart of the server would forget who holds a slot, and the slot would never be free again.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        **({"PREFECT_API_AUTH_STRING": own} if own else {}),
    }


def home_of(data: Path) -> Path:
    """Prefect's own folder in a data folder."""
    return data.absolute() / "prefect"


def kept_up(data: Path) -> str | None:
    """Address of the server that `make ui` keeps up on a data folder; None where it does not."""
    state, lock = home_of(data) / "ui.json", home_of(data) / "ui.lock"
    if not (state.exists() and lock.exists()):
        return None
    with lock.open() as held:
        try:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # its keeper lives
            return json.loads(state.read_bytes())["url"]
    return None


def _provide_limits(free: bool = False) -> None:
    """The limits; `free`: with all their slots."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.exceptions import PrefectHTTPStatusError

    from flows.provision import free_slots, provision_limits

    url, key, auth = (os.environ.get(f"PREFECT_API_{name}") for name in ("URL", "KEY", "AUTH_STRING"))
    try:
        with SyncPrefectClient(str(url), api_key=key, auth_string=auth) as client:
            provision_limits(client)
            if free:
                free_slots(client)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 401:
            raise
        raise FatalError(f"{url}: refuses us; set PREFECT_API_AUTH_STRING to what its server was given") from None
    except httpx.HTTPError as error:
        raise FatalError(f"{url}: Prefect's server does not answer ({error}); see PREFECT_API_URL") from None


def _send_what_is_queued() -> None:
    """Lets Prefect's queues of log lines and events run dry: with the server gone they would hold up our exit."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for queue in (APILogWorker, EventsWorker):
        queue.drain_all(timeout=FLUSH_SECONDS)


def _wait(server: Child, health: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.running and time.monotonic() < deadline:
        try:
            if httpx.get(health, timeout=2).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    reason = next((line for line in reversed(server.tail()) if "Error" in line), "it said nothing")
    raise FatalError(f"Prefect's server did not start ({reason.strip()}); its log is {log}")
