"""The candidate against the adapter it started from and the one now served, on held-out prompts."""

from nothing_gpt.adapters import adapter_digest
from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo import evaluate as library
from nothing_gpt.serve.registry import read_registry
from tasks import stage
from tasks.place import Models, Place
from tasks.shown import counted


@stage(
    "evaluate",
    uses=["endpoint", "judge"],
    numbers=lambda place, models, prompts, candidate: counted(place.workshop, prompts, "held-out prompts", "test_rows"),
)
def evaluate(place: Place, models: Models, prompts: Artifact, candidate: Artifact) -> Artifact:
    settings, served = place.settings, _served(place, models, candidate)
    return library.evaluate(
        place.workshop,
        prompts,
        settings.sampling,
        settings.judge,
        start=place.adapter(models, models.start),
        served=place.adapter(models, served) if served else None,
        candidate=place.adapter(models, candidate),
        judging=place.judge(),
        bound=settings.gate.min_win_rate,
    )


def _served(place: Place, models: Models, candidate: Artifact) -> Artifact | None:
    """The adapter that the candidate replaces, or has replaced; None where that is the starting one, or its files are
    gone."""
    workshop, registry = place.workshop, read_registry(place.workshop.store)
    version = registry.current_version
    if version and version.digest == adapter_digest(workshop.folder(candidate)):
        version = registry.version(version.replaces)
    if version is None or version.digest == adapter_digest(workshop.folder(models.start)):
        return None
    return workshop.find(*version.artifact.split("/"))
