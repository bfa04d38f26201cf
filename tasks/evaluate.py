"""The candidate against the adapter it started from, on held-out prompts."""

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo import evaluate as library
from tasks import stage
from tasks.place import Models, Place
from tasks.shown import counted


@stage(
    "evaluate",
    uses=["endpoint", "judge"],
    numbers=lambda place, models, prompts, candidate: counted(place.workshop, prompts, "held-out prompts", "test_rows"),
)
def evaluate(place: Place, models: Models, prompts: Artifact, candidate: Artifact) -> Artifact:
    settings = place.settings
    return library.evaluate(
        place.workshop,
        prompts,
        settings.sampling,
        settings.judge,
        reference=place.adapter(models, models.start),
        candidate=place.adapter(models, candidate),
        judging=place.judge(),
    )
