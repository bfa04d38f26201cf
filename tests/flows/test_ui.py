"""`make ui` and `make down`: what they leave running, and what a second start finds."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from flows.server import kept_up
from tests.chain.processes import MARK, REPOSITORY
from tests.flows.test_dpo import copy_database

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(400)]


def ui(command: str, data: Path) -> str:
    """What `python -m flows.ui` says, in an environment of its own."""
    names = ("PREFECT_API_URL", "PREFECT_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {MARK: str(data), "PREFECT_SERVER_API_AUTH_STRING": "me:pw"}
    told = subprocess.run(
        [sys.executable, "-m", "flows.ui", command, "--data", str(data)], cwd=REPOSITORY, text=True, check=False,
        capture_output=True, timeout=300, env=environment,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return told.stderr


def started_for(data: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(data):
                found.append(process)
        except psutil.Error:
            pass
    return found


def test_it_stays_up_asks_for_its_password_and_is_gone_after_down_with_all_runs_kept(
    tmp_path: Path, prefect: None
) -> None:
    home = tmp_path / "prefect"
    copy_database(Path(os.environ["PREFECT_HOME"]) / "prefect.db", home / "prefect.db")
    said = ui("up", tmp_path)
    try:
        url = kept_up(tmp_path)
        assert url
        assert url in said
        assert "already up" in ui("up", tmp_path)
        assert httpx.post(f"{url}/api/deployments/filter", json={}).status_code == 401
        found = httpx.post(f"{url}/api/deployments/filter", json={}, auth=("me", "pw")).json()
        assert {"embedded", "nightly", "gke"} <= {deployment["name"] for deployment in found}
        (server,) = (p for p in started_for(tmp_path) if p.cmdline()[1:5] == ["-m", "prefect", "server", "start"])
        server.kill()
        server.wait(30)
        eventually_up(f"{url}/api/health")
    finally:
        ui("down", tmp_path)
    assert kept_up(tmp_path) is None
    assert started_for(tmp_path) == []
    with closing(sqlite3.connect(home / "prefect.db")) as kept:
        assert kept.execute("select count(*) from deployment").fetchone()[0] >= 3


def eventually_up(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not come back")
