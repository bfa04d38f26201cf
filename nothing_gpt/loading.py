"""Settings from files and the command line, and what is said where they are wrong."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import ValidationError

from nothing_gpt.config import Group, Settings
from nothing_gpt.errors import FatalError

Preset = Literal["recommended", "noisy_judge", "length_norm", "aggressive", "guide", "smoke"]
Valid = TypeVar("Valid", bound=Group)
PRESETS = Path(__file__).parents[1] / "deployments" / "presets"


def load_settings(
    files: Path | Sequence[Path] | None = None, overrides: Iterable[str] = (), seed: int | None = None
) -> Settings:
    """Settings from YAML files, where a later one changes single keys of an earlier one, and `group.key=value`
    overrides; `seed` sets every group's seed.

    Raises:
        FatalError: a file cannot be read, or a setting is unknown, of the wrong type or out of bounds.
    """
    values = _laid({}, [files] if isinstance(files, Path) else files or (), overrides, "--set")
    if seed is not None:
        for name, field in Settings.model_fields.items():
            if "seed" in getattr(field.annotation, "model_fields", {}):
                values.setdefault(name, {})["seed"] = seed
    return validated(Settings, values)


def compose(groups: Settings, preset: Preset | None = None, overrides: Iterable[str] = ()) -> Settings:
    """The groups, which need not fit together yet, with a preset's values over theirs, and overrides over both.

    Raises:
        FatalError: as `load_settings`.
    """
    values = {name: getattr(groups, name).model_dump() for name in Settings.model_fields}
    return validated(Settings, _laid(values, [PRESETS / f"{preset}.yaml"] if preset else (), overrides, "overrides:"))


def _laid(values: dict[str, Any], files: Iterable[Path], overrides: Iterable[str], given_as: str) -> dict[str, Any]:
    """The values with those of the files over them, and the overrides over all."""
    for file in files:
        given = read_yaml(file)
        if not (isinstance(given, dict) and all(isinstance(group, dict) for group in given.values())):
            raise FatalError(
                f"{file}: expected groups of settings ({', '.join(Settings.model_fields)}), each a mapping"
            )
        values = _merged(values, given)
    for override in overrides:
        name, equals, text = override.partition("=")
        *groups, key = name.strip().split(".")
        if not (equals and groups and all(groups) and key):
            raise FatalError(f"{given_as} {override}: write it as group.key=value, such as training.beta=0.05")
        try:
            values = _merged(values, _nested(groups, {key: yaml.safe_load(text)}))
        except (yaml.YAMLError, ValueError):
            raise FatalError(f"{given_as} {override}: the value is not YAML; put it in quotes") from None
    return values


def validated(model: type[Valid], values: dict[str, Any]) -> Valid:
    """The values as settings. Raises FatalError, with one line a mistake."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise FatalError("; ".join(_explain(e, model) for e in error.errors())) from None


def _merged(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The values with those that are given in their place, group by group."""
    both = {
        name: _merged(values[name], value) if isinstance(value, dict) and isinstance(values.get(name), dict) else value
        for name, value in given.items()
    }
    return values | both


def _nested(groups: Sequence[str], value: dict[str, Any]) -> dict[str, Any]:
    for group in reversed(groups):
        value = {group: value}
    return value


def read_yaml(file: Path) -> Any:
    """What is in a file. Raises FatalError where that cannot be read."""
    try:
        return yaml.safe_load(file.read_bytes()) or {}
    except OSError as error:
        raise FatalError(f"{file}: cannot read the settings ({error.strerror}); check the path") from None
    except (yaml.YAMLError, ValueError) as error:
        raise FatalError(f"{file}: not YAML ({' '.join(str(error).split())}); correct the file") from None


def _explain(error: Any, model: type[Group]) -> str:
    """One line for one of Pydantic's errors, with the nearest known name where a name is unknown."""
    path = [str(part) for part in error["loc"]]
    name = ".".join(path) or "settings"
    if error["type"] != "extra_forbidden":
        given = "" if isinstance(error["input"], dict) else f" (given: {error['input']!r})"
        return (
            f"{name}: {error['msg'].removeprefix('Value error, ')[:1].lower()}"
            f"{error['msg'].removeprefix('Value error, ')[1:]}{given}"
        )
    fields: dict[str, Any] = dict(model.model_fields)
    for part in path[:-1]:
        if part in fields:  # a model's name in judge.prices is no field; what holds it is a dict of groups
            annotation = fields[part].annotation
            fields = dict(getattr((annotation, *get_args(annotation))[-1], "model_fields", {}))
    near = difflib.get_close_matches(path[-1], fields, n=1)
    return f"{name}: no such setting; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(fields)}")
