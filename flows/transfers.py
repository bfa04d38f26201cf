"""Artifacts moved between the data folder and the place's bucket, which other machines see too.

A place that keeps its results in the bucket has in the data folder only what another place made there, or what was
pulled: a chain that began on one machine goes on in the bucket, and the other way round.
"""

from pathlib import Path

from nothing_gpt.artifacts import KEY, Artifact
from nothing_gpt.config import Settings
from nothing_gpt.given import give
from nothing_gpt.transfer import copy
from nothing_gpt.workshops import bucket_workshop, folder_workshop
from tasks.credentials import place_credentials


def push(settings: Settings, what: str) -> Artifact:
    """The artifact with this key, or one made of this file of prompts or folder of an adapter, in the bucket. Raises as
    `copy` and `give`."""
    place = settings.place
    bucket = bucket_workshop(place, place_credentials(place))
    return copy(what, folder_workshop(place), bucket) if KEY.fullmatch(what) else give(bucket, Path(what))


def pull(settings: Settings, key: str) -> Artifact:
    """The artifact in the data folder; `copy` says when it is, and what is raised."""
    place = settings.place
    return copy(key, bucket_workshop(place, place_credentials(place)), folder_workshop(place))
