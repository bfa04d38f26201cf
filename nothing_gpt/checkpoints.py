"""Which checkpoint may a killed training go on from? The newest whole one, on this disk or in the store.

Transformers takes the newest folder on trust: without its adapter file training silently restarts, without the
optimizer's state it silently diverges. So a checkpoint counts only with its marker, which is written last and knows
each file's checksum; the same holds for its copy in the store.

Beside it stands what else a training that can be killed needs: a work folder of its own.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nothing_gpt.errors import NothingGPTError, TransientError
from nothing_gpt.progress import say
from nothing_gpt.records import file_digest
from nothing_gpt.store import FolderStore, Store, reporting_disk

COMPLETE = "COMPLETE"
FOLDER = "checkpoints"
KEPT = 2
"""Copies in the store of one run: the newest, and the one before it in case that is damaged."""


class Checkpoints:
    """The checkpoints of one run: `checkpoint-<step>` in a local folder, and copies in a store where one is given.

    `run` is the run's fingerprint: copies lie in a folder of that name, so that no other run goes on from them.
    """

    def __init__(self, folder: Path, store: Store | None = None, run: str = ""):
        self.folder = folder
        self._store = store
        self._key = f"{FOLDER}/{run}"

    def newest(self, at_most: int | None = None) -> Path | None:
        """The newest whole one of both places, fetched to the local folder; None: training starts anew. With `at_most`
        none after that step.

        Raises:
            TransientError, FatalError: the store fails, and there is none here. Who then started anew would throw away
                hours that a second try may find.
        """
        local = newest_whole(self.folder, at_most)
        try:
            with reporting_disk(self.folder):
                return self._newer_copy(local, at_most) or local
        except (NothingGPTError, OSError) as error:
            if local is not None:
                say(f"train: the store's checkpoints cannot be had ({error}); {local.name} is this machine's newest")
                return local
            if isinstance(error, OSError):
                raise TransientError(f"train: the store's checkpoints cannot be had ({error}); run again") from None
            raise

    def _newer_copy(self, local: Path | None, at_most: int | None) -> Path | None:
        for step in self._copies():
            if local and step <= step_of(local):
                break
            if at_most is not None and step > at_most:
                continue
            fetched = self.folder / f"checkpoint-{step}"
            if fetch_folder(self._store, f"{self._key}/{fetched.name}", fetched) and is_whole(fetched):
                return fetched
        return None

    def keep(self, checkpoint: Path) -> None:
        """Marks a checkpoint that was just saved as whole, copies it to the store, and deletes copies that are too
        old."""
        seal(checkpoint)
        if self._store is None:
            return
        with surviving_store(f"{checkpoint.name} is on this machine only"):
            keep_folder(self._store, f"{self._key}/{checkpoint.name}", checkpoint)
            for step in self._copies()[KEPT:]:
                delete_folder(self._store, f"{self._key}/checkpoint-{step}")

    def clear(self) -> None:
        """Deletes the run's copies: it is finished."""
        if self._store is not None:
            delete_folder(self._store, self._key)

    def _copies(self) -> list[int]:
        """Steps of the complete copies, newest first."""
        if self._store is None:
            return []
        found = [Path(key).parent for key in self._store.list(self._key) if key.endswith(f"/{COMPLETE}")]
        return sorted((step_of(path) for path in found if _is_named_well(path)), reverse=True)


def newest_whole(folder: Path, at_most: int | None = None) -> Path | None:
    """The newest whole `checkpoint-<step>` in a trainer's output folder, none after step `at_most`; or None."""
    found = sorted(filter(_is_named_well, folder.glob("checkpoint-*")), key=step_of, reverse=True)
    allowed = (path for path in found if at_most is None or step_of(path) <= at_most)
    return next(filter(is_whole, allowed), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether every file is there as it was saved, and the adapter finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not is_sealed(checkpoint):
        return False
    try:
        tensors = load_file(checkpoint / "adapter_model.safetensors")
    except (OSError, SafetensorError):
        return False
    return bool(tensors) and all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def is_sealed(folder: Path) -> bool:
    """Whether every file is there as it was when the folder was sealed."""
    try:
        marker = json.loads((folder / COMPLETE).read_bytes())
        return all(file_digest(folder / name) == checksum for name, checksum in marker.items())
    except (OSError, ValueError, AttributeError, NothingGPTError):
        return False


def seal(folder: Path) -> None:
    """Marks a folder as whole. Should the power fail before its files are on the disk, their checksums tell."""
    FolderStore(folder).write(COMPLETE, json.dumps(_checksums(folder)).encode())


def step_of(checkpoint: Path) -> int:
    """The step a checkpoint was made after."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def keep_folder(store: Store, key: str, folder: Path) -> None:
    """Copies a folder's files to the store. The marker goes first and comes last, so that a half-made copy, or one that
    is being replaced, is none."""
    store.delete(f"{key}/{COMPLETE}")
    checksums = _checksums(folder)
    for name in checksums:
        store.upload(folder / name, f"{key}/{name}")
    store.write(f"{key}/{COMPLETE}", json.dumps(checksums).encode())


@contextmanager
def surviving_store(otherwise: str) -> Iterator[None]:
    """A copy that fails is no reason to stop training: what is then the case is said."""
    try:
        yield
    except (NothingGPTError, OSError) as error:
        say(f"train: {otherwise}: {error}")


def fetch_folder(store: Store | None, key: str, folder: Path) -> bool:
    """Replaces a local folder by its copy in the store, whole or not at all; whether there was a whole copy."""
    marker = store.read(f"{key}/{COMPLETE}") if store else None
    if store is None or marker is None:
        return False
    half = folder.with_name(f".{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    try:
        for name, checksum in json.loads(marker).items():
            (half / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store.fetch(f"{key}/{name}"), half / name)
            if file_digest(half / name) != checksum:
                return False
        (half / COMPLETE).write_bytes(marker)
    except (FileNotFoundError, ValueError, AttributeError):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    half.replace(folder)
    return True


def delete_folder(store: Store, key: str) -> None:
    """Deletes a copy, its markers first."""
    for name in sorted(store.list(key), key=lambda name: not name.endswith(f"/{COMPLETE}")):
        store.delete(name)


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Holds a work folder for one process; the kernel lets it go when the process ends, however that is.

    Raises:
        TransientError: another training holds it.
    """
    with reporting_disk(work):
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransientError(f"train: another training is at work in {work}; wait for its end") from None
        except OSError:
            pass  # a file system without locks
        yield


def _checksums(folder: Path) -> dict[str, str]:
    """The files' checksums by their names, but for the marker's own."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: file_digest(path) for name, path in files.items() if name != COMPLETE}


def _is_named_well(path: Path) -> bool:
    return path.name.removeprefix("checkpoint-").isdigit()
