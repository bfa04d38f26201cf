"""Sweeps by name or from a file, and the settings of each of their points."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from nothing_gpt.config import Settings, SweepSettings
from nothing_gpt.config.sweep import PRESET
from nothing_gpt.errors import FatalError
from nothing_gpt.halving import SHARE
from nothing_gpt.loading import PRESETS, Preset, compose, read_yaml, validated

SweepName = Literal["beta", "judge", "completions", "temperature", "data", "epochs", "warmup"]
SWEEPS = PRESETS.with_name("sweeps")


@dataclass(frozen=True)
class Point:
    """One of the settings that a sweep compares. Its name says what is its own, as `--set` takes it."""

    name: str
    settings: Settings

    def on_the_first_budget(self) -> Settings:
        """Its settings for successive halving's first rung: a share of its epochs, with a schedule of their own."""
        training = self.settings.training
        fewer = training.model_copy(update={"num_train_epochs": training.num_train_epochs * SHARE})
        return self.settings.model_copy(update={"training": fewer})


def read_sweep(which: str | Path) -> SweepSettings:
    """A named sweep, or that of a YAML file.

    Raises:
        FatalError: there is none, or it is none.
    """
    names = get_args(SweepName)
    file = SWEEPS / f"{which}.yaml" if which in names else Path(which)
    if not file.is_file():
        raise FatalError(f"{which}: no such sweep ({', '.join(names)}), and no such file")
    try:
        return validated(SweepSettings, read_yaml(file))
    except FatalError as error:
        raise FatalError(f"{which}: {error}") from None


def points_of(sweep: SweepSettings, settings: Settings) -> list[Point]:
    """The sweep's points, each with its own values over the settings.

    Raises:
        FatalError: fewer than two points, or a point's settings are wrong.
    """
    given = sweep.combined()
    if len(given) < 2:
        raise FatalError(f"sweep: {len(given)} points; name a sweep, or give two points or more in points or grid")
    return [_point(values, settings) for values in given]


def _point(values: dict[str, Any], settings: Settings) -> Point:
    name = ", ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())
    preset: Preset | None = values.get(PRESET)
    if preset not in (None, *get_args(Preset)):
        raise FatalError(f"{name}: no such preset; there are {', '.join(get_args(Preset))}")
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items() if key != PRESET]
    try:
        point = Point(name, compose(settings, preset, overrides))
        point.settings.check_chain()
    except FatalError as error:
        raise FatalError(f"{name}: {error}") from None
    return point
