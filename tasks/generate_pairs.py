"""Completions of every prompt from the starting adapter."""

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo import generate_pairs as library
from tasks import stage
from tasks.place import Models, Place
from tasks.shards import SERVE_KEY, spread
from tasks.shown import counted


@stage(
    "generate_pairs",
    uses=["endpoint"],
    numbers=lambda place, models, prompts: (
        f"{counted(place.workshop, prompts, 'prompts')} · {place.settings.sampling.num_completions} completions each"
    ),
)
def generate_pairs(place: Place, models: Models, prompts: Artifact) -> Artifact:
    settings, service = place.settings.sampling, place.adapter(models, models.start)
    shards = spread(
        place, "generate", library.generate_shard, prompts, settings, service, SERVE_KEY, settings.num_completions
    )
    return library.generate_pairs(place.workshop, prompts, settings, service, shards)
