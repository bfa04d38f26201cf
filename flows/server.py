"""A Prefect server of our own for the length of one command, its database in the data folder, where later commands and
the UI find all runs again.

Prefect would start a temporary server by itself, but that one lives on when its flow is killed.
"""

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
    """Points Prefect, which must not be imported yet, at a server: the one that PREFECT_API_URL names, or our own.

    Raises:
        FatalError: the server does not start.
    """
    if "PREFECT_API_URL" in os.environ:
        yield
        return
    home = Path(settings.place.data).absolute() / "prefect"
    with reporting_disk(home):
        home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    os.environ.update(
        {
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # Our own lines are on the terminal; Prefect's are in the run's log, where its UI shows them.
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        }
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = Path(settings.place.data) / "logs" / "prefect.log"
    with Child(command, log) as server:
        _wait(server, f"http://127.0.0.1:{port}/api/health", log)
        try:
            yield
        finally:
            _send_what_is_queued()


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
