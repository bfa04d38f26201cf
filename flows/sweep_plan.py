"""What a sweep would do: each stage once, with the points that share it, and the calls and the money it asks for.

Two points share a stage where all settings are the same that it and what comes before it are made from: this can be
said before any of it is there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.expected import Planned
from flows.plan import plan
from nothing_gpt.config import Settings
from nothing_gpt.dpo import evaluate, generate_pairs, judge, order, pairs
from nothing_gpt.embedded.judge import MODEL
from nothing_gpt.records import digest
from nothing_gpt.sweeps import Point

INPUTS = {
    "scripts": (),
    "base": ("scripts",),
    "sft": ("base",),
    "prompts": ("scripts",),
    "generate_pairs": ("sft", "prompts"),
    "judge": ("generate_pairs",),
    "pairs": ("judge",),
    "train": ("sft", "pairs"),
    "evaluate": ("sft", "prompts", "train"),
}
OWN: Mapping[str, Callable[[Settings], Any]] = {
    "sft": lambda settings: settings.training.starting_version,
    "prompts": lambda settings: settings.prompts.model_dump(),
    "generate_pairs": lambda settings: settings.sampling.model_dump(exclude=generate_pairs.UNFINGERPRINTED),
    "judge": lambda settings: [
        settings.judge.model_dump(include={*judge.FINGERPRINTED, "rubric"}),
        _judged_by(settings),
    ],
    "pairs": lambda settings: settings.judge.model_dump(include=pairs.FINGERPRINTED),
    "train": lambda settings: settings.training.model_dump(exclude=order.UNFINGERPRINTED),
    "evaluate": lambda settings: [
        settings.sampling.model_dump(exclude=evaluate.UNFINGERPRINTED),
        settings.judge.model_dump(include={*evaluate.FINGERPRINTED, "rubric"}),
        _judged_by(settings),
        settings.gate.min_win_rate,
    ],
}
"""What of the settings a stage is made from, beside its inputs. The place is the same for all."""


@dataclass(frozen=True)
class Shared:
    """A stage as it is planned, and the numbers (from 1) of the points that share it. `budget` is `a third` on
    successive halving's first rung."""

    planned: Planned
    points: Sequence[int]
    budget: str = ""


def sweep_plan(points: Sequence[Point], halving: bool = False) -> list[Shared]:
    """Every stage of every point up to the evaluation, each once, in the order of the stages. Raises as `plan`."""
    found: dict[tuple[str, str], tuple[Planned, str, list[int]]] = {}

    def add(settings: Settings, number: int, until: str, budget: str = "") -> None:
        for planned in plan(settings, until):
            key = planned.stage, _key(planned.stage, settings)
            *_, sharing = found.setdefault(key, (planned, budget if planned.stage == "train" else "", []))
            if number not in sharing:
                sharing.append(number)

    for number, point in enumerate(points, 1):
        if halving:
            add(point.on_the_first_budget(), number, "train", "a third")
        add(point.settings, number, "evaluate")
    stages = [*INPUTS]
    ordered = sorted(found.values(), key=lambda entry: (stages.index(entry[0].stage), not entry[1]))
    return [Shared(planned, sharing, budget) for planned, budget, sharing in ordered]


def _key(stage: str, settings: Settings) -> str:
    own = OWN[stage](settings) if stage in OWN else None
    return digest([stage, own, *(_key(before, settings) for before in INPUTS[stage])])


def _judged_by(settings: Settings) -> str:
    return MODEL if settings.place.kind == "embedded" else settings.judge.model
