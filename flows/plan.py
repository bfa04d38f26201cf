"""What a run would do: each stage cached or to do, with the calls and the money that asks for. Runs nothing.

The chain is walked with the same tasks until a stage finds no artifact; what follows it has to be done, and is
estimated from the rows known by then.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flows.dpo import chain
from flows.record import ONLY_IN, STAGES
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import Settings
from nothing_gpt.embedded.judge import MODEL
from nothing_gpt.records import read_prompts
from tasks.place import GKEPlace, Place, open_place

TO_DO = "to do"
PROMPT_TOKENS = 600
VERDICT_TOKENS = 300
"""What the judge is shown beside the completions, and what it thinks and writes (150 to 600 were seen), in tokens."""
SECONDS_A_PAIR = 0.88
"""Training seconds a pair and epoch on an L4: 808 s for 919 pairs were measured for a 3B model before any tuning."""


@dataclass(frozen=True)
class Planned:
    """One stage of a plan: `cached` or `to do`, rows and calls where they can be foreseen, and the expected USD."""

    stage: str
    status: str
    rows: int | None = None
    calls: int | None = None
    usd: float | None = None


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
    return [found.get(name) or _expected(name, settings, counts) for name in wanted]


def _expected(stage: str, settings: Settings, counts: dict[str, int]) -> Planned:
    """What a stage that is to do will ask for, as far as that is known beforehand."""
    prompts, held_out = counts["rows"], counts["test_rows"]
    votes = settings.judge.votes
    if stage in ("prompts", "pairs"):  # of the pairs these are the most that there can be
        return Planned(stage, TO_DO, prompts)
    if stage == "generate_pairs":
        return Planned(stage, TO_DO, prompts, calls=prompts)
    if stage == "judge":
        return Planned(
            stage,
            TO_DO,
            prompts,
            calls=votes * prompts,
            usd=_judging_usd(settings, votes * prompts, settings.sampling.num_completions),
        )
    if stage == "train":
        training, pairs = settings.training, round(prompts * (1 - settings.judge.val_ratio))
        hours = pairs * training.num_train_epochs * SECONDS_A_PAIR / 3600
        return Planned(stage, TO_DO, pairs, usd=hours * settings.place.gpu_usd_per_hour)
    if stage == "evaluate":
        return Planned(stage, TO_DO, held_out, calls=4 * held_out, usd=_judging_usd(settings, 2 * held_out, 2))
    return Planned(stage, TO_DO)


def _judging_usd(settings: Settings, calls: int, completions: int) -> float | None:
    model = MODEL if settings.place.kind == "embedded" else settings.judge.model
    price = settings.judge.prices.get(model)
    if price is None:
        return None
    asked = PROMPT_TOKENS + completions * settings.sampling.max_tokens
    return calls * (asked * price.input + VERDICT_TOKENS * price.output) / 1e6


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
