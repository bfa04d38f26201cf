"""Prefect's server with its UI, a worker and the deployments, kept up on this machine.

    python -m flows.ui up        # make ui
    python -m flows.ui down      # make down

`up` leaves one process behind, the keeper: it starts server and worker, starts each again where it dies, and ends both
with itself, even where it is killed. It holds `ui.lock` in Prefect's folder as long as it lives; what it says is in
`logs/ui.log` of the data folder. The second start finds all that was there: runs, artifacts, schedules switched on.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import psutil
import typer

from flows.server import home_of, kept_up, own_server
from nothing_gpt.errors import FatalError, exits_cleanly
from nothing_gpt.processes import Child, free_port
from nothing_gpt.progress import say
from nothing_gpt.store import reporting_disk

REPOSITORY = Path(__file__).parents[1]
DEPLOYMENTS = "deployments/prefect.yaml"
PORT = 4200
UP_SECONDS, DOWN_SECONDS, RUN_SECONDS = 180, 90, 30
PAUSE_SECONDS = 2

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Data = Annotated[Path, typer.Option(help="Folder for Prefect's database and the logs.")]


@app.command()
def up(
    data: Data = Path("data"),
    port: Annotated[int | None, typer.Option(help="Default: 4200, or any free one where that is taken.")] = None,
) -> None:
    """Start all, and print the address once a run can be started."""
    home, log = home_of(data), data.absolute() / "logs" / "ui.log"
    if url := kept_up(data):
        say(f"already up: {url}")
        return
    with reporting_disk(home):
        home.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        (home / "ui.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "flows.ui", "keep", "--data", str(data.absolute()), "--port", str(_port(port))]
    say("starting Prefect's server, a worker and the deployments; this takes half a minute")
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=REPOSITORY, start_new_session=True
        )
    deadline = time.monotonic() + UP_SECONDS
    while not (url := kept_up(data)):
        if keeper.poll() is not None or time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                keeper.terminate()
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            reason = lines[-1].removeprefix("error: ") if lines else "it said nothing"
            raise FatalError(f"the UI did not start: {reason}; its log is {log}")
        time.sleep(0.1)
    say(f"Prefect's UI: {url}/deployments (`make down` ends it)")


@app.command()
def down(data: Data = Path("data")) -> None:
    """End all. A run at work is ended too, and goes on when it is retried."""
    if not kept_up(data):
        say("not up")
        return
    keeper = psutil.Process(json.loads((home_of(data) / "ui.json").read_bytes())["pid"])
    keeper.terminate()
    try:
        keeper.wait(DOWN_SECONDS)
    except psutil.TimeoutExpired:
        keeper.kill()  # its children end with it
    say("ended; all runs are kept")


@app.command(hidden=True)
def keep(data: Data, port: Annotated[int, typer.Option()]) -> None:
    """The keeper: holds server and worker up until SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with (home_of(data) / "ui.lock").open("w") as lock, ExitStack() as children:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FatalError("another one is being started on this data folder") from None
        os.set_inheritable(lock.fileno(), False)
        server = _Kept("server", lambda: children.enter_context(own_server(data, port)))
        _deploy()
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local", "--install-policy", "never"]
        log = data / "logs" / "worker.log"
        often = {"PREFECT_WORKER_QUERY_SECONDS": "2"}
        worker = _Kept("worker", lambda: children.enter_context(Child(command, log, often)))
        state = home_of(data) / "ui.json"
        half = state.with_suffix(".part")
        half.write_text(json.dumps({"pid": os.getpid(), "url": f"http://127.0.0.1:{port}"}))
        half.replace(state)
        while not stop.wait(0.2):
            server.see_to()
            worker.see_to()
        worker.end_runs()
        state.unlink()


class _Kept:
    """A process that is started again whenever it has ended."""

    def __init__(self, name: str, start: Callable[[], Child]):
        self._name, self._start = name, start
        self._child = start()

    def see_to(self) -> None:
        if not self._child.running:
            say(f"the {self._name} ended with exit code {self._child.returncode}; starting it again")
            time.sleep(PAUSE_SECONDS)
            self._child = self._start()

    def end_runs(self) -> None:
        """Ends the worker's runs before it ends itself: so they have time to say that they crashed."""
        with suppress(psutil.NoSuchProcess):
            runs = psutil.Process(self._child.pid).children()
            for run in runs:
                run.terminate()
            psutil.wait_procs(runs, RUN_SECONDS)


def _deploy() -> None:
    """Pools, limits, automations and deployments. A schedule that was switched on in the UI stays on."""
    from prefect.client.orchestration import get_client

    from flows.provision import provision

    with get_client(sync_client=True) as client:
        provision(client)
        before = {(d.name, s.slug) for d in client.read_deployments() for s in d.schedules if s.active}
        command = ["deploy", "--all", "--no-prompt", "--prefect-file", DEPLOYMENTS]
        subprocess.run([sys.executable, "-m", "prefect", *command], cwd=REPOSITORY, check=True)
        for deployment in client.read_deployments():
            for schedule in deployment.schedules:
                if (deployment.name, schedule.slug) in before and not schedule.active:
                    client.update_deployment_schedule(deployment.id, schedule.id, active=True)


def _port(wanted: int | None) -> int:
    """The port to use. Raises FatalError where the wanted one is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or PORT))
        except OSError:
            if wanted:
                raise FatalError(f"--port {wanted}: taken; name another one, or none") from None
            return free_port()
    return wanted or PORT


@exits_cleanly
def main() -> None:
    app(standalone_mode=True)


if __name__ == "__main__":
    main()
