"""Which checkpoint may a killed training go on from? The newest whole one, on this disk or in the store.

Transformers takes the newest folder on trust: without its adapter file training silently restarts, without the
optimizer's state it silently diverges. So a checkpoint counts only if all that resuming reads is there, can be opened
and is finite. A copy in the store counts only with its marker, which is written last and knows each file's checksum.
"""

import json
import shutil
import zipfile
from pathlib import Path

from nothing_gpt.errors import NothingGPTError
from nothing_gpt.progress import say
from nothing_gpt.records import file_digest
from nothing_gpt.store import Store

COMPLETE = "COMPLETE"
FOLDER = "checkpoints"
KEPT = 2
"""Copies in the store of one run: the newest, and the one before it in case that is damaged."""
_STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


class Checkpoints:
    """The checkpoints of one run: `checkpoint-<step>` in a local folder, and copies in a store where one is given.

    `run` is the run's fingerprint: copies lie in a folder of that name, so that no other run goes on from them.
    """

    def __init__(self, folder: Path, store: Store | None = None, run: str = ""):
        self.folder = folder
        self._store = store
        self._key = f"{FOLDER}/{run}"

    def newest(self) -> Path | None:
        """The newest whole one of both places, fetched to the local folder; None: training starts anew."""
        local = newest_whole(self.folder)
        for step in self._copies():
            if local and step <= step_of(local):
                break
            fetched = self.folder / f"checkpoint-{step}"
            if fetch_folder(self._store, f"{self._key}/{fetched.name}", fetched) and is_whole(fetched):
                return fetched
        return local

    def keep(self, checkpoint: Path) -> None:
        """Copies a checkpoint to the store and deletes copies that are too old. A store that fails is no reason to stop
        training: it is said, and the checkpoint stays on this disk."""
        if self._store is None:
            return
        try:
            keep_folder(self._store, f"{self._key}/{checkpoint.name}", checkpoint)
            for step in self._copies()[KEPT:]:
                delete_folder(self._store, f"{self._key}/checkpoint-{step}")
        except NothingGPTError as error:
            say(f"train: {checkpoint.name} is on this machine only: {error}")

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


def newest_whole(folder: Path) -> Path | None:
    """The newest whole `checkpoint-<step>` in a trainer's output folder, or None."""
    newest_first = sorted(filter(_is_named_well, folder.glob("checkpoint-*")), key=step_of, reverse=True)
    return next((path for path in newest_first if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether everything that resuming reads is there, can be opened and is finite: a cut file shows in its header or
    index. `ref`, the trainer's copy of the starting adapter, may be missing, since training makes it anew."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        adapters = [checkpoint / "adapter_model.safetensors"]
        if (checkpoint / "ref").is_dir():
            adapters.append(checkpoint / "ref" / "adapter_model.safetensors")
        for adapter in adapters:
            tensors = load_file(adapter)
            if not tensors or not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
                return False
        for name in _STATE:
            zipfile.ZipFile(checkpoint / name).close()
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False
    return True


def step_of(checkpoint: Path) -> int:
    """The step a checkpoint was made after."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def keep_folder(store: Store, key: str, folder: Path) -> None:
    """Copies a folder's files to the store. The marker goes first and comes last, so that a half-made copy, or one that
    is being replaced, is none."""
    store.delete(f"{key}/{COMPLETE}")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for name, path in files.items():
        store.upload(path, f"{key}/{name}")
    marker = {name: file_digest(path) for name, path in files.items()}
    store.write(f"{key}/{COMPLETE}", json.dumps(marker).encode())


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
    except (FileNotFoundError, ValueError, AttributeError):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    half.replace(folder)
    return True


def delete_folder(store: Store, key: str) -> None:
    """Deletes a copy, its markers first."""
    for name in sorted(store.list(key), key=lambda name: not name.endswith(f"/{COMPLETE}")):
        store.delete(name)


def _is_named_well(path: Path) -> bool:
    return path.name.removeprefix("checkpoint-").isdigit()
