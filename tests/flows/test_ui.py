"""`make ui` and `make down`: who gets in, and what becomes of a run whose server dies or whose machine is shut down."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.flows.deployed import ended, eventually, faked, held, kept, repeated, retry, start, state
from tests.flows.fakes import Engines, engines
from tests.flows.ui import NAME, PASSWORD, UI

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(600)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Engines]:
    with engines(tmp_path) as running:
        yield running


def test_it_asks_for_its_password_and_starts_once(ui: UI) -> None:
    assert "already up" in ui.tell("up")
    deployments = f"{ui.url}/api/deployments/filter"
    assert httpx.post(deployments, json={}).status_code == 401
    found = httpx.post(deployments, json={}, auth=(NAME, PASSWORD)).json()
    assert {"embedded", "nightly", "gke"} <= {deployment["name"] for deployment in found}


def test_a_run_outlives_its_server(ui: UI, place: Engines) -> None:
    with ui.client() as client:
        with held(place, 20):
            run = start(client, faked(client)["embedded"], place)
            eventually(lambda: kept(place) >= 20)
            server = ui.server()
            server.kill()
            server.wait(30)
        eventually(lambda: answers(f"{ui.url}/api/health"))
        assert ended(client, run).state_name == "Completed"
        assert [found.name for found in client.read_flow_run_states(run.id)].count("Running") == 1
    assert repeated(place) == 0


def test_after_down_nothing_is_left_but_the_runs_and_one_at_work_goes_on_when_it_is_retried(
    ui: UI, place: Engines
) -> None:
    with ui.client() as client, held(place, 40):
        run = start(client, faked(client)["embedded"], place)
        eventually(lambda: kept(place) >= 40)
        assert "all runs are kept" in ui.tell("down")
        assert ui.processes() == []
        assert "not up" in ui.tell("down")
    ui.tell("up")
    with ui.client() as client:
        assert state(client, run) == "Crashed"
        faked(client)
        retry(client, run)
        assert ended(client, run).state_name == "Completed"
    assert repeated(place) <= 1  # the one in flight


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False
