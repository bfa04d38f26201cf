"""What a run would do: each stage cached or to do, with the calls and the money that asks for. Runs nothing.

The chain is walked with the same tasks until a stage finds no artifact; what follows it has to be done, and is
estimated from the rows known by then.
"""

from collections.abc import Callable
from typing import Any

from flows.dpo import chain
from flows.expected import TO_DO, Planned, expected
from flows.record import ONLY_IN, STAGES
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import Settings
from nothing_gpt.records import read_prompts
from tasks.place import GKEPlace, Place, open_place


class _ToDo(Exception):
    """The end of the walk: a stage's artifact is not there, or what follows is not asked for."""


class _LookOnly(Workshop):
    """A workshop that finds artifacts and makes none. One that lacks failed rows is taken as it is: whether another
    try would bring them is not known beforehand."""

    def _have(self, stage: Stage, fingerprint: str, bring: Callable[[], Artifact]) -> Artifact:
        if found := self.find(stage.name, fingerprint):
            return found
        raise _ToDo


def plan(settings: Settings, until: str) -> list[Planned]:
    """The stages up to `until`, in order.

    Raises:
        FatalError: the settings, the prompts file or the adapter would stop the run at once.
    """
    with open_place(settings) as place:
        place.workshop = workshop = _LookOnly(place.workshop.store, place.workshop.work)
        found: dict[str, Planned] = {}
        prompts: Artifact | None = None

        def step(task: Any, *inputs: Any) -> Any:
            nonlocal prompts
            if until in found or task.name in ("gate", "promote"):
                raise _ToDo
            if isinstance(place, GKEPlace) and task.name == "image":  # which the task would build
                found["image"] = Planned("image", "cached" if place.image_there() else TO_DO)
                return None
            state: Any = task.fn(*inputs)
            artifact: Artifact = state.data
            if task.name == "prompts":
                prompts = artifact
            counts = workshop.counts(artifact)
            found[task.name] = Planned(task.name, "cached", counts.get("rows"), calls=counts.get("failed") or None)
            return artifact

        try:
            chain(place, step)
        except _ToDo:
            pass
        counts = _counts(place, prompts)
    wanted = STAGES[: STAGES.index(until) + 1]
    kind = settings.place.kind
    wanted = [name for name in wanted if ONLY_IN.get(name, kind) == kind]
    return [found.get(name) or expected(name, settings, counts) for name in wanted]


def _counts(place: Place, prompts: Artifact | None) -> dict[str, int]:
    """How many prompts make pairs and how many are held out."""
    if prompts:
        return place.workshop.counts(prompts)
    group = place.settings.prompts
    total = len(read_prompts(*place.prompts_files(group.paths))[0])
    total = min(group.sample or total, total)
    held_out = round(total * group.test_share)
    return {
        "rows": min(group.limit or total, total - held_out) if total else group.limit or 0,
        "test_rows": min(group.test_limit or held_out, held_out) if total else group.test_limit or 0,
    }
