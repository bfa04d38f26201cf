"""The prompts of a run, read into the store and split."""

from pathlib import Path

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo import prompts as library
from tasks import stage
from tasks.place import Place


@stage("prompts")
def prompts(place: Place, files: list[Path]) -> Artifact:
    return library.prompts(place.workshop, files, place.settings.prompts)
