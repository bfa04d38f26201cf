"""The demo's promise, on the settings it ships with: a better adapter, promoted, with figures that show it."""

import json
import math
from pathlib import Path

import pytest

from tests.chain.processes import Command

pytestmark = [pytest.mark.demo, pytest.mark.timeout(900)]


def test_the_demo_ends_with_an_adapter_that_is_measurably_better(tmp_path: Path) -> None:
    data = ["--set", f"place.data={tmp_path / 'data'}"]
    run = Command("run", *data, log=tmp_path / "run.log")
    assert run.wait(800) == 0, run.output
    assert run.alive() == []
    Command("report", "--json", *data, log=tmp_path / "report.json").wait(60)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["training"]["step0_loss"] == pytest.approx(math.log(2), abs=0.02)
    assert report["training"]["eval_accuracy_ci"][0] > 0.5
    assert report["win_rate"]["ci"][0] > 0.5
    assert report["promoted"]["version"] == 1
