"""DPO training of the starting adapter on the pairs."""

from nothing_gpt.artifacts import Artifact
from tasks import stage
from tasks.place import Models, Place
from tasks.shown import counted


@stage(
    "train",
    uses=["gpu"],
    numbers=lambda place, models, pairs: (
        f"{counted(place.workshop, pairs, 'pairs', 'train')} · {place.settings.training.num_train_epochs:g} epochs"
    ),
)
def train(place: Place, models: Models, pairs: Artifact) -> Artifact:
    return place.train(models, pairs)
