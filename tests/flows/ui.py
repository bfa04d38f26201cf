"""`make ui` on a data folder of the tests' own, behind a password."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from prefect.client.orchestration import SyncPrefectClient

from flows.server import kept_up
from tests.chain.processes import MARK, REPOSITORY

NAME, PASSWORD = "me", "pw"


class UI:
    """What `python -m flows.ui` keeps up."""

    def __init__(self, data: Path):
        self.data = data

    def tell(self, command: str) -> str:
        """What `up` or `down` says."""
        names = ("PREFECT_API_URL", "PREFECT_HOME")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        environment |= {
            MARK: str(self.data),
            "PREFECT_SERVER_API_AUTH_STRING": f"{NAME}:{PASSWORD}",
            "PYTHONPATH": str(REPOSITORY),  # the fake flow is no part of the package
        }
        told = subprocess.run(
            [sys.executable, "-m", "flows.ui", command, "--data", str(self.data)], cwd=REPOSITORY, text=True,
            check=False, capture_output=True, timeout=300, env=environment,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
        return told.stderr

    @property
    def url(self) -> str:
        url = kept_up(self.data)
        assert url
        return url

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        with SyncPrefectClient(f"{self.url}/api", auth_string=f"{NAME}:{PASSWORD}") as client:
            yield client

    def processes(self) -> list[psutil.Process]:
        """All that it has started and that lives."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.data):
                    found.append(process)
            except psutil.Error:
                pass
        return found

    def server(self) -> psutil.Process:
        (server,) = (p for p in self.processes() if p.cmdline()[1:5] == ["-m", "prefect", "server", "start"])
        return server
