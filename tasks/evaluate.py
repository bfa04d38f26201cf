"""The candidate against the adapter it started from and the one now served, on held-out prompts."""

from nothing_gpt.adapters import adapter_digest
from nothing_gpt.artifacts import Artifact, Workshop
from nothing_gpt.dpo import evaluate as library
from nothing_gpt.serve.promote import adapter_of
from nothing_gpt.serve.registry import Registry
from tasks import stage
from tasks.place import Models, Place
from tasks.shown import counted


@stage(
    "evaluate",
    uses=["endpoint", "judge"],
    numbers=lambda place, models, prompts, *_: counted(place.workshop, prompts, "held-out prompts", "test_rows"),
)
def evaluate(place: Place, models: Models, prompts: Artifact, candidate: Artifact, registry: Registry) -> Artifact:
    settings, served = place.settings, _served(place.workshop, models, candidate, registry)
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


def _served(workshop: Workshop, models: Models, candidate: Artifact, registry: Registry) -> Artifact | None:
    """The adapter that the candidate would replace, or has replaced, if that is still there; None where it is the
    starting one. Raises FatalError where it cannot be compared with what it would replace."""
    version = registry.current_version
    promoted = version and version.digest == adapter_digest(workshop.folder(candidate))
    if version and promoted:
        version = registry.version(version.replaces)
    if version is None or version.digest == adapter_digest(workshop.folder(models.start)):
        return None
    return workshop.find(*version.artifact.split("/")) if promoted else adapter_of(workshop, version)
