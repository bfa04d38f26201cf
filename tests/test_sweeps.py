"""Sweeps by name or from a file, and the settings of their points."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from nothing_gpt.config import Settings, SweepSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.sweeps import SWEEPS, SweepName, points_of, read_sweep

DOCUMENTATION = SWEEPS.parents[1] / "docs" / "sweeps.md"


def names(**sweep: object) -> list[str]:
    return [point.name for point in points_of(SweepSettings.model_validate(sweep), Settings())]


def test_the_seven_ideas_are_there_and_each_can_be_run() -> None:
    assert {file.stem for file in SWEEPS.glob("*.yaml")} == set(get_args(SweepName))
    for name in get_args(SweepName):
        sweep = read_sweep(name)
        assert "Expected: " in sweep.description
        assert len({point.settings.model_dump_json() for point in points_of(sweep, Settings())}) >= 2


def test_the_sweeps_that_the_documentation_shows_can_be_run() -> None:
    shown = re.findall(r"```yaml\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    assert [len(points_of(SweepSettings(**yaml.safe_load(text)), Settings())) for text in shown] == [4, 4, 6]


def test_a_grid_is_all_combinations_and_its_last_key_changes_first() -> None:
    assert names(grid={"training.beta": [0.1, 0.05], "judge.votes": [1, 2]}) == [
        "training.beta=0.1, judge.votes=1", "training.beta=0.1, judge.votes=2",
        "training.beta=0.05, judge.votes=1", "training.beta=0.05, judge.votes=2",
    ]  # fmt: skip


def test_a_list_and_a_grid_are_combined() -> None:
    found = names(points=[{"preset": "aggressive"}, {}], grid={"training.beta": [0.2, 0.3]})
    assert found[0] == "preset=aggressive, training.beta=0.2"
    assert len(found) == 4


def test_a_points_values_win_over_its_preset_and_that_over_the_settings() -> None:
    sweep = SweepSettings(points=[{"preset": "aggressive", "training.beta": 0.3}, {"preset": "aggressive"}])
    first, second = points_of(sweep, Settings())
    assert (first.settings.training.beta, second.settings.training.beta) == (0.3, 0.05)
    assert first.settings.training.num_train_epochs == 3


def test_values_are_as_they_stand_in_the_file() -> None:
    sweep = SweepSettings(grid={"training.learning_rate": [1.0e-6, 2.0e-5], "prompts.paths": [["a"], ["a", "b"]]})
    last = points_of(sweep, Settings())[-1].settings
    assert (last.training.learning_rate, last.prompts.paths) == (2e-5, ["a", "b"])


def test_the_first_budget_is_a_third_of_the_epochs() -> None:
    point, _ = points_of(SweepSettings(grid={"training.num_train_epochs": [3, 6]}), Settings())
    assert point.on_the_first_budget().training.num_train_epochs == 1
    assert point.settings.training.num_train_epochs == 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("grid: {training.betta: [1, 2]}", "training.betta=1: training.betta: no such setting; did you mean beta?"),
        ("grid: {training.beta: [0.1, 11]}", "training.beta=11: training.beta: input should be less than or equal"),
        ("grid: {beta: [0.1, 0.2]}", "beta=0.1: overrides: beta=0.1: write it as group.key=value"),
        ("grid: {training.beta: [0.1]}", "sweep: 1 points; name a sweep, or give two points or more"),
        ("description: nothing", "sweep: 0 points"),
        ("points: [{preset: big}, {preset: smoke}]", "preset=big: no such preset; there are recommended, "),
        ("grid: {training.beta: [0.1, 0.1]}", "two points are the same"),
        ("grid: {place.seed: [1, 2]}", "place.seed: the points of a sweep share one place"),
        ("grids: {training.beta: [0.1, 0.2]}", "grids: no such setting; did you mean grid?"),
        ("grid: {training.seed: [" + ", ".join(map(str, range(65))) + "]}", "65 points; a sweep takes at most 64"),
        ("[1, 2]", "settings: input should be a valid dictionary"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    with pytest.raises(FatalError) as refused:
        points_of(read_sweep(file), Settings())
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_sweep_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(FatalError, match=r"nope: no such sweep \(beta, judge, .*\), and no such file"):
        read_sweep("nope")
