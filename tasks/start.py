"""Where a run starts from: the sample scripts, the base model and the starting adapter."""

from nothing_gpt.artifacts import Artifact
from nothing_gpt.embedded import stages
from tasks import stage
from tasks.place import LocalPlace, Place


@stage("scripts")
def scripts(place: Place) -> Artifact:
    return stages.scripts(place.workshop, place.settings.place.seed)


@stage("base")
def base(place: Place, scripts: Artifact) -> Artifact:
    return stages.base(place.workshop, scripts, place.settings.place.seed, place.run)


@stage("sft")
def sft(place: Place, scripts: Artifact, base: Artifact) -> Artifact:
    return stages.sft(place.workshop, scripts, base, place.settings.place.seed, place.run)


@stage("sft")
def adopt_adapter(place: LocalPlace) -> Artifact:
    """The user's own starting adapter, checked and kept as an artifact."""
    return place.adopted()
