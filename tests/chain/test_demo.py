"""The demo's promises, on the settings it ships with: a better adapter, promoted, with figures that show it, and
settings compared on what it made."""

import json
import math
from pathlib import Path

import pytest

from nothing_gpt.report.sweep import COMPARED
from tests.chain.processes import Command

pytestmark = [pytest.mark.demo, pytest.mark.timeout(900)]


def finish(log: Path, *command: object) -> str:
    """What a command prints, whose last word is the data folder."""
    *words, data = map(str, command)
    return Command(*words, "--set", f"place.data={data}", log=log).finish()


def test_it_ends_with_an_adapter_that_is_measurably_better(demo: Path, tmp_path: Path) -> None:
    report = json.loads(finish(tmp_path / "report.json", "report", "--json", demo))
    assert report["training"]["step0_loss"] == pytest.approx(math.log(2), abs=0.02)
    assert report["training"]["eval_accuracy_ci"][0] > 0.5
    assert report["win_rate"]["ci"][0] > 0.5
    assert report["promoted"]["version"] == 1


def test_a_sweep_trains_what_the_demo_has_not_and_compares_it_with_what_it_has(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("grid: {training.beta: [0.1, 0.3]}")
    finish(tmp_path / "sweep.log", "sweep", tmp_path / "sweep.yaml", demo)
    (summary,) = (json.loads(file.read_text()) for file in (demo / "store" / "sweeps").glob("*/summary.json"))
    best, other = summary["points"]
    assert {best["point"], other["point"]} == {"training.beta=0.1", "training.beta=0.3"}
    assert {best["status"], other["status"]} <= {"passed", "refused"}
    made = {stage: len([*(demo / "store").glob(f"{stage}/*/manifest.json")]) for stage in best["stages"]}
    assert {stage for stage, count in made.items() if count > 1} == {"train", "evaluate"}
    assert (made["train"], best["stages"]["pairs"]) == (2, other["stages"]["pairs"])
    assert other["against_best"].keys() == {"accuracy", "win rate"}
    page = (demo / "sweep.html").read_text()
    assert COMPARED in page
    assert f"of {other['against_best']['accuracy']['n']}, p = " in page
