"""Artifacts moved between this place's own store and its bucket, which other machines see too."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.server import prefect_server
from nothing_gpt.artifacts import Artifact, Workshop
from nothing_gpt.config import Settings
from nothing_gpt.errors import FatalError
from nothing_gpt.store import open_store
from nothing_gpt.transfer import copy

if TYPE_CHECKING:
    from google.auth.credentials import Credentials


def push(settings: Settings, key: str) -> Artifact:
    """The artifact in the bucket; `copy` says when it is, and what is raised."""
    return copy(key, _own(settings), bucket(settings))


def pull(settings: Settings, key: str) -> Artifact:
    """The artifact in the place's own store; `copy` says when it is, and what is raised."""
    return copy(key, bucket(settings), _own(settings))


def bucket(settings: Settings) -> Workshop:
    """The workshop of the place's bucket.

    Raises:
        FatalError: the place has none, there are no credentials for it, or it cannot be used.
        TransientError: it cannot be reached.
    """
    data = Path(settings.place.data)
    if settings.place.bucket is None:
        raise FatalError("place.bucket: not set; give gs://BUCKET/PREFIX in the settings or with --set")
    return Workshop(open_store(settings.place.bucket, _credentials(settings), data / "cache"), data / "work")


def _own(settings: Settings) -> Workshop:
    data = Path(settings.place.data)
    return Workshop(open_store(str(data / "store")), data / "work")


def _credentials(settings: Settings) -> "Credentials | None":
    if settings.place.gcp_block is None:
        return None
    with prefect_server(settings):
        from tasks.credentials import block_credentials

        return block_credentials(settings.place.gcp_block)
