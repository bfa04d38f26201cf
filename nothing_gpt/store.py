"""Where results live: a small interface to named objects, and its implementation as a folder. Its other implementation
is `cloud_store.py`.

An object is written whole or not at all. Keys are relative paths with forward slashes. Nothing above this file knows
which kind of store it has.
"""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from nothing_gpt.errors import FatalError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

FORMAT = 1
_FORMAT_KEY = "FORMAT"
_DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EFBIG,
}


class Store(Protocol):
    """Named objects under one address."""

    uri: str

    def read(self, key: str) -> bytes | None:
        """The object's bytes, or None where there is no such object."""
        ...

    def fetch(self, key: str) -> Path:
        """A local file with the object's bytes, not to be changed. Raises FileNotFoundError where there is none."""
        ...

    def size(self, key: str) -> int | None:
        """The object's size (bytes), or None where there is no such object."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Writes the object."""
        ...

    def copy(self, source: str, target: str) -> None:
        """Writes one object's bytes to another. Raises FileNotFoundError where there is none."""
        ...

    def stream(self, key: str, pieces: Iterable[bytes]) -> None:
        """Writes the object from pieces, which need not be in memory together."""
        ...

    def upload(self, file: Path, key: str) -> None:
        """Writes a local file's bytes to the object."""
        ...

    def swap(self, key: str, data: bytes, expected: bytes | None) -> bool:
        """Writes the object only if its present bytes are `expected` (None: there is none), with no other `swap` in
        between; returns whether it was written."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys of the objects in a folder and below it, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Deletes the object, if it is there."""
        ...


def open_store(uri: str, credentials: "Credentials | None" = None, cache: Path | None = None) -> Store:
    """The store at an address: a folder's path, or gs://bucket/prefix.

    Credentials and the folder for fetched objects concern a bucket only; `CloudStore` says what they are by default.

    Raises:
        FatalError: an address of an unknown kind, a place that cannot be used, or a store of a newer version.
        TransientError: a bucket that cannot be reached now.
    """
    store = open_bucket(uri, credentials, cache) if "://" in uri else FolderStore(Path(uri))
    written = store.read(_FORMAT_KEY)
    if written is None:
        store.write(_FORMAT_KEY, str(FORMAT).encode())
    elif not written.strip().isdigit():
        raise FatalError(f"{uri}: its file {_FORMAT_KEY} is damaged; write {FORMAT} into it, or use another folder")
    elif int(written) > FORMAT:
        raise FatalError(
            f"{uri}: written by a newer version of nothing-gpt (format {int(written)}; this one knows "
            f"{FORMAT}); upgrade it, or use another folder"
        )
    return store


def open_bucket(uri: str, credentials: "Credentials | None", cache: Path | None) -> Store:
    """A folder of a bucket, also one that is no store of ours. Raises FatalError as `open_store`."""
    if not uri.startswith("gs://"):
        raise FatalError(f"{uri}: no such kind of store; give a folder's path or gs://BUCKET/PREFIX")
    try:
        from nothing_gpt.cloud_store import CloudStore  # an extra, and half a second to import
    except ModuleNotFoundError as error:
        raise FatalError(f"{uri}: needs the package {error.name}; pip install 'nothing-gpt[gcp]'") from None
    return CloudStore(uri, credentials, cache)


class FolderStore:
    """Objects as files: written to a temporary file, flushed to the disk, renamed."""

    def __init__(self, root: Path):
        self.root = root.absolute()
        self.uri = str(self.root)

    def read(self, key: str) -> bytes | None:
        with reporting_disk(self.root / key):
            try:
                return (self.root / key).read_bytes()
            except FileNotFoundError:
                return None

    def fetch(self, key: str) -> Path:
        path = self.root / key
        if not path.is_file():
            raise FileNotFoundError(key)
        return path

    def size(self, key: str) -> int | None:
        path = self.root / key
        return path.stat().st_size if path.is_file() else None

    def write(self, key: str, data: bytes) -> None:
        self.stream(key, [data])

    def copy(self, source: str, target: str) -> None:
        self.upload(self.fetch(source), target)

    def stream(self, key: str, pieces: Iterable[bytes]) -> None:
        with self._replacing(key) as file:
            file.writelines(pieces)

    def upload(self, file: Path, key: str) -> None:
        with self._replacing(key) as target, file.open("rb") as source:
            shutil.copyfileobj(source, target, 1 << 20)

    def swap(self, key: str, data: bytes, expected: bytes | None) -> bool:
        with reporting_disk(self.root / key):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.read(key) != expected:
                return False
            self.write(key, data)
            return True

    def list(self, prefix: str = "") -> Iterator[str]:
        yield from sorted(
            (Path(folder) / name).relative_to(self.root).as_posix()
            for folder, _, files in os.walk(self.root / prefix)
            for name in files
            if not name.startswith(".")
        )

    def delete(self, key: str) -> None:
        with reporting_disk(self.root / key):
            (self.root / key).unlink(missing_ok=True)

    @contextmanager
    def _replacing(self, key: str) -> Iterator[BinaryIO]:
        path = self.root / key
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with reporting_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)


@contextmanager
def reporting_disk(path: Path) -> Iterator[None]:
    """Turns a disk that is full, read-only or forbidden into one clear line; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise FatalError(
            f"{path}: cannot be used ({error.strerror}); make room or make the folder writable, and "
            "run again: what is finished is kept"
        ) from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
