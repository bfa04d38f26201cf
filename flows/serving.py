"""Serving the promoted adapter, taking it back, and making server and registry agree. What belongs to an adapter is
found through its lineage.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from prefect import get_run_logger

from nothing_gpt.artifacts import Artifact, Workshop
from nothing_gpt.config import Settings
from nothing_gpt.embedded.serving import LocalVLLM
from nothing_gpt.errors import FatalError, NothingGPTError
from nothing_gpt.progress import say
from nothing_gpt.serve.promote import roll_back, roll_back_unserved, sync, version_folder
from nothing_gpt.serve.registry import Rollback, Version, read_registry
from nothing_gpt.serve.switch import Server
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
        base = workshop.folder(found(workshop, base_of(workshop, current.artifact)))
        adapter = version_folder(workshop, current, Path())
        with LocalVLLM(base, place.logs / "serve.log", port=port) as server:
            VLLM(server.base_url).load(current.name, str(adapter))
            yield server.base_url


def roll_back_current(settings: Settings, rollback: Rollback) -> Version | None:
    """Takes the current adapter back; returns the version that is current now, None for the starting adapter.

    Raises:
        FatalError: nothing is promoted, or a server refuses the former adapter: then nothing has changed.
    """
    with open_place(settings) as place:
        _current(place)
        if not isinstance(place, LocalPlace):  # its server lives no longer than a run
            return roll_back_unserved(place.workshop.store, rollback)
        version = roll_back(place.workshop, rollback, starting(place), named_server(place))
        place.name_copy("promote", version.artifact if version else None)
        return version


def sync_served(settings: Settings) -> tuple[Version | None, list[str]]:
    """Makes every server of the place serve what the registry says, proves it, and returns the version that is current
    and what was otherwise before. Where the place's server lives no longer than a run there is nothing to do.

    Raises:
        FatalError: the current adapter's files are gone, or a server refuses it; TransientError: one does not answer.
    """
    with open_place(settings) as place:
        version = read_registry(place.workshop.store).current_version
        if not isinstance(place, LocalPlace):
            return version, []
        start, server = starting(place), named_server(place)
        strays = server.strays(version_folder(place.workshop, version, start))
        version = sync(place.workshop, start, server)
        place.name_copy("promote", version.artifact if version else None)
        return version, strays


def agree(place: Place) -> None:
    """What every run begins with: where servers and registry do not agree, they are made to. That it cannot be done
    stops no run: its promotion proves what it does anyway."""
    if not isinstance(place, LocalPlace):
        return  # its server starts with what the registry says
    try:
        if strays := _strays(place):
            _tell(f"{'; '.join(strays)}: not what the registry says")
            version = sync(place.workshop, starting(place), named_server(place))
            _tell(f"{place.settings.sampling.model} is {called(version)} again")
    except NothingGPTError as error:
        _tell(f"whether served and registered adapter agree is not known: {error}; going on")


def _strays(place: LocalPlace) -> list[str]:
    """What is otherwise than the registry says. While nothing is promoted, what a server was started with is its
    owner's business, and only an adapter of ours is out of place: a promotion died before it was recorded."""
    workshop, server = place.workshop, named_server(place)
    if version := read_registry(workshop.store).current_version:
        return server.strays(version_folder(workshop, version, Path()))
    return [
        f"{one.url} serves {one.name!r} from {root}"
        for one in server.each
        if (root := one.root) and _is_trained(workshop, root)
    ]


def _is_trained(workshop: Workshop, root: str) -> bool:
    stage, fingerprint = ("", "", *PurePosixPath(root).parts)[-2:]
    return stage == "train" and workshop.manifest(f"{stage}/{fingerprint}") is not None


def named_server(place: LocalPlace) -> Server:
    """The place's server, with the stable name that the current version was promoted under."""
    server, current = place.running_server(), read_registry(place.workshop.store).current_version
    return replace(server, name=current.name) if current else server


def starting(place: LocalPlace) -> Path:
    """Folder of the adapter that the stable name stands for while nothing is promoted: the one from which the place's
    latest version was made, however many rounds ago, and where none was made the user's.

    Raises:
        FatalError: it is not there.
    """
    workshop = place.workshop
    for version in reversed(read_registry(workshop.store).versions):
        if version.place == place.settings.place.kind and (first := first_of(workshop, version.artifact)):
            return workshop.folder(first)
    return workshop.folder(place.adopted())


def first_of(workshop: Workshop, adapter: str) -> Artifact | None:
    """The adapter at the beginning of an adapter's lineage; None where that is broken."""
    key, manifest = adapter, workshop.manifest(adapter)
    while manifest and "adapter" in manifest.lineage:
        key = manifest.lineage["adapter"]
        manifest = workshop.manifest(key)
    return workshop.find(*key.split("/", 1)) if key != adapter else None


def _current(place: Place) -> Version:
    version = read_registry(place.workshop.store).current_version
    if version is None:
        raise FatalError("no adapter is promoted; run `nothing-gpt run` first")
    return version


def base_of(workshop: Workshop, adapter: str) -> str:
    """Key of the base model that an adapter was first trained on, however many rounds ago."""
    manifest = workshop.manifest(adapter)
    if manifest is None:
        raise _gone(adapter)
    return manifest.lineage["base"] if "base" in manifest.lineage else base_of(workshop, manifest.lineage["adapter"])


def found(workshop: Workshop, key: str) -> Artifact:
    """The artifact with this key. Raises FatalError where it is gone or damaged."""
    artifact = workshop.find(*key.split("/", 1))
    if artifact is None:
        raise _gone(key)
    return artifact


def called(version: Version | None) -> str:
    """A version in words."""
    return f"version {version.version}" if version else "the starting adapter"


def _gone(key: str) -> FatalError:
    return FatalError(f"{key} is gone from the store, or damaged; run `nothing-gpt run` to make it again")


def _tell(line: str) -> None:
    """To the terminal and to Prefect."""
    say(line)
    get_run_logger().info(line)
