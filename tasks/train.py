"""DPO training of the starting adapter on the pairs."""

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo import train as library
from tasks import stage
from tasks.place import Models, Place


@stage("train")
def train(place: Place, models: Models, pairs: Artifact) -> Artifact:
    return library.train(place.workshop, pairs, models.start, models.base, place.settings.training, place.run)
