"""The prompts of a run, read into the store and split."""

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo import prompts as library
from tasks import stage
from tasks.place import Place


@stage("prompts")
def prompts(place: Place, addresses: list[str]) -> Artifact:
    return library.prompts(place.workshop, place.prompts_files(addresses), place.settings.prompts)
