"""The training image of the place `gke`: found in the registry, or built there.

Asked for before anything is paid for, and before a base model is uploaded: what is amiss with the registry, the rights,
the image itself or the Job's manifest shows in the run's first minutes, not after hours of sampling and judging. The
price is that a run of changed code builds the image even where the training is then found done.
"""

from nothing_gpt.artifacts import Artifact
from tasks import stage
from tasks.place import GKEPlace


@stage("image")
def image(place: GKEPlace) -> Artifact:
    return place.image
