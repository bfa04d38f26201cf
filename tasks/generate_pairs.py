"""Completions of every prompt from the starting adapter."""

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo import generate_pairs as library
from tasks import stage
from tasks.place import Models, Place


@stage("generate_pairs")
def generate_pairs(place: Place, models: Models, prompts: Artifact) -> Artifact:
    return library.generate_pairs(place.workshop, prompts, place.settings.sampling, place.adapter(models, models.start))
