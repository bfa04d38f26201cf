"""DPO training of the starting adapter on the pairs."""

from nothing_gpt.artifacts import Artifact
from tasks import stage
from tasks.place import Models, Place


@stage("train")
def train(place: Place, models: Models, pairs: Artifact) -> Artifact:
    return place.train(models, pairs)
