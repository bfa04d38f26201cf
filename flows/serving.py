"""Serving and taking back the promoted adapter, outside a run. What belongs to it is found through its lineage."""

from collections.abc import Iterator
from contextlib import contextmanager

from nothing_gpt.artifacts import Artifact, Manifest, Workshop
from nothing_gpt.config import Settings
from nothing_gpt.embedded.serving import LocalVLLM
from nothing_gpt.errors import FatalError
from nothing_gpt.preferences import read_pairs
from nothing_gpt.serve.promote import roll_back, roll_back_unserved
from nothing_gpt.serve.registry import Version, read_registry
from nothing_gpt.vllm_admin import VLLM
from tasks.place import LocalPlace, Place, open_place


@contextmanager
def serve_current(settings: Settings, port: int) -> Iterator[str]:
    """A vLLM of our own with the promoted adapter under its stable name; yields its address.

    Raises:
        FatalError: nothing is promoted yet, or the place has a server of its own.
    """
    with open_place(settings) as place:
        if isinstance(place, LocalPlace):
            raise FatalError("serve: this place has a vLLM of its own, which serves already; see place.serve_url")
        workshop = place.workshop
        current = _current(place)
        base = workshop.folder(_found(workshop, _base(workshop, current.artifact)))
        adapter = workshop.folder(_found(workshop, current.artifact))
        with LocalVLLM(base, place.logs / "serve.log", port=port) as server:
            VLLM(server.base_url).load(current.name, str(adapter))
            yield server.base_url


def roll_back_current(settings: Settings) -> Version | None:
    """Takes the current adapter back; returns the version that is current now, None for the starting adapter.

    Raises:
        FatalError: nothing is promoted, or the server refuses the former adapter: then nothing has changed.
    """
    with open_place(settings) as place:
        workshop, current = place.workshop, _current(place)
        if not isinstance(place, LocalPlace):  # its server lives no longer than a run
            return roll_back_unserved(workshop.store)
        made = _manifest(workshop, current.artifact)
        start = workshop.folder(_found(workshop, made.lineage["adapter"]))
        validation = read_pairs(workshop.file(_found(workshop, made.lineage["pairs"]), "val.jsonl"))
        version = roll_back(workshop, start, place.running_server(), validation[0]["prompt"])
        place.name_copy("promote", version.artifact if version else None)
        return version


def _current(place: Place) -> Version:
    version = read_registry(place.workshop.store).current_version
    if version is None:
        raise FatalError("no adapter is promoted; run `nothing-gpt run` first")
    return version


def _base(workshop: Workshop, adapter: str) -> str:
    """Key of the base model that an adapter was first trained on, however many rounds ago."""
    lineage = _manifest(workshop, adapter).lineage
    return lineage["base"] if "base" in lineage else _base(workshop, lineage["adapter"])


def _manifest(workshop: Workshop, key: str) -> Manifest:
    manifest = workshop.manifest(key)
    if manifest is None:
        raise _gone(key)
    return manifest


def _found(workshop: Workshop, key: str) -> Artifact:
    found = workshop.find(*key.split("/", 1))
    if found is None:
        raise _gone(key)
    return found


def _gone(key: str) -> FatalError:
    return FatalError(f"{key} is gone from the store, or damaged; run `nothing-gpt run` to make it again")
