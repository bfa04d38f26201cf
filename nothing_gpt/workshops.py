"""Where a place's artifacts are: in its data folder, or in its bucket, which other machines see too."""

from pathlib import Path
from typing import TYPE_CHECKING

from nothing_gpt.artifacts import Workshop
from nothing_gpt.config import PlaceSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.store import open_store

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

IN_BUCKET = {"gke"}
"""Kinds of places that keep everything in the bucket."""


def open_workshop(place: PlaceSettings, credentials: "Credentials | None" = None) -> Workshop:
    """The workshop of the place. Raises as the one of the two that it is."""
    return bucket_workshop(place, credentials) if place.kind in IN_BUCKET else folder_workshop(place)


def folder_workshop(place: PlaceSettings) -> Workshop:
    """The workshop of the data folder. Raises FatalError where that cannot be used."""
    data = Path(place.data)
    return Workshop(open_store(str(data / "store")), data / "work")


def bucket_workshop(place: PlaceSettings, credentials: "Credentials | None" = None) -> Workshop:
    """The workshop of the bucket; `CloudStore` says which credentials are taken where none are given. What is fetched
    from there lies below the data folder, under paths that stay: a vLLM loads adapters from them.

    Raises:
        FatalError: the place has no bucket, there are no credentials for it, or it cannot be used.
        TransientError: it cannot be reached.
    """
    if place.bucket is None or "://" not in place.bucket:  # without, it would be a folder
        wrong = f"{place.bucket} is no bucket" if place.bucket else "not set"
        raise FatalError(f"place.bucket: {wrong}; give gs://BUCKET/PREFIX in the settings or with --set")
    data = Path(place.data).absolute()
    return Workshop(open_store(place.bucket, credentials, data / "cache"), data / "work")
