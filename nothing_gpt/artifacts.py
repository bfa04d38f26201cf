"""Finished work: immutable folders of files, addressed by what made them, that exist when their manifest does.

`Workshop.make` is the only cache of the pipeline. It answers from the store where an artifact of the same stage,
version, settings and inputs is whole, and otherwise builds it, under a lease so that of two runs only one works.
"""

import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, PositiveInt, ValidationError

from nothing_gpt.errors import FatalError, NothingGPTError
from nothing_gpt.progress import say
from nothing_gpt.records import digest, file_digest
from nothing_gpt.store import Store, reporting_disk

MANIFEST = "manifest.json"
KEY = re.compile(r"[\w-]+/[0-9a-f]{16}")
"""An artifact's key in a store, STAGE/FINGERPRINT."""
LEASE_SECONDS = 60.0
CLOCK_SECONDS = 5.0
"""A process's start time is told from the system's clock, and moves by as much when that is set."""


@dataclass(frozen=True)
class Stage:
    """A stage's name and version. A change of its code that changes its results wants a new version."""

    name: str
    version: int


@dataclass(frozen=True)
class Artifact:
    """A reference to a finished artifact.

    `fingerprint` names what made it, `digest` what is in it, and `reused` says that it was there already.
    """

    uri: str
    stage: str
    fingerprint: str
    digest: str
    reused: bool = False

    @property
    def key(self) -> str:
        return f"{self.stage}/{self.fingerprint}"


class FileEntry(BaseModel):
    """Size (bytes) and SHA-256 of one of an artifact's files."""

    size: int
    sha256: str


class Manifest(BaseModel):
    """What made an artifact and what is in it: the last file written."""

    stage: str
    version: int
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Digest of each input's content."""
    lineage: dict[str, str]
    """Key of each input in the store."""
    counts: dict[str, Any]
    files: dict[str, FileEntry]
    seconds: float
    created: float
    """Unix time (s)."""

    @property
    def digest(self) -> str:
        return digest({name: entry.sha256 for name, entry in self.files.items()})

    @property
    def failed(self) -> int:
        """Rows that could not be had."""
        return self.counts.get("failed", 0)


Build = Callable[[Path], Mapping[str, Any]]
"""Fills an empty or, after a kill, half-filled folder with the artifact's files; returns the counts to record. A count
named `failed` is of rows that could not be had, and that another try may bring."""


class Workshop:
    """A store of artifacts and a local folder to build them in."""

    def __init__(self, store: Store, work: Path):
        self.store = store
        self.work = work
        self.refresh: Mapping[str, str] = {}
        """Stages to be done anew, each with the name of the wish: one wish is fulfilled once, whoever repeats it."""

    def make(self, stage: Stage, settings: Mapping[str, Any], inputs: Mapping[str, Artifact], build: Build) -> Artifact:
        """The stage's artifact for these settings and inputs, from the store or built now.

        One that lacks failed rows is built once more: where fewer fail the new one takes its place, with another
        digest, which those made from it follow; otherwise it stays.

        Files and folders whose names begin with `.` or `_` are scratch: they survive a kill, so that a build may go
        on from them, and are no part of the artifact.

        Raises:
            FatalError: the local folder or the store cannot be written. Whatever `build` raises.
        """
        fingerprint = self.fingerprint(stage, settings, inputs)
        return self._have(stage, fingerprint, lambda: self._make(stage, fingerprint, settings, inputs, build))

    def made_elsewhere(
        self, stage: Stage, settings: Mapping[str, Any], inputs: Mapping[str, Artifact], ask: Callable[[str], None]
    ) -> Artifact:
        """As `make`, but by another machine with the same store, which holds the lease meanwhile: `ask` is given the
        fingerprint, has it made, and returns when it should be there.

        Raises:
            FatalError: it is not there, or not whole. Whatever `ask` raises.
        """
        fingerprint = self.fingerprint(stage, settings, inputs)

        def bring() -> Artifact:
            ask(fingerprint)
            found = self.find(stage.name, fingerprint)
            if found is None:
                raise FatalError(
                    f"{self.store.uri}/{stage.name}/{fingerprint}: its Job ended with exit code 0, but there is no "
                    "whole artifact; look at the Job's log, and run again"
                )
            return replace(found, reused=False)

        return self._have(stage, fingerprint, bring)

    def _have(self, stage: Stage, fingerprint: str, bring: Callable[[], Artifact]) -> Artifact:
        found = self.find(stage.name, fingerprint)
        return found if found and not self._failed(found) else bring()

    def fingerprint(self, stage: Stage, settings: Mapping[str, Any], inputs: Mapping[str, Artifact]) -> str:
        """What names the artifact to be found or made: a digest of what makes it, and of the wish to have it anew."""
        plain = fingerprint_of(stage, settings, inputs)
        wish = self.refreshed(stage, settings, inputs)
        return digest([plain, wish])[:16] if wish else plain

    def refreshed(self, stage: Stage, settings: Mapping[str, Any], inputs: Mapping[str, Artifact]) -> str:
        """The wish by which this stage was last done anew with these settings and inputs; empty where it never was.

        It stands in the store, so that the new result stays the one to be found. The former one and the replies it was
        made of stay too, under their own names.
        """
        key = f"refreshed/{stage.name}/{fingerprint_of(stage, settings, inputs)}"
        if wish := self.refresh.get(stage.name):
            self.store.write(key, wish.encode())
            return wish
        return (self.store.read(key) or b"").decode()

    def _make(
        self, stage: Stage, fingerprint: str, settings: Mapping[str, Any], inputs: Mapping[str, Artifact], build: Build
    ) -> Artifact:
        with lease(self.store, f"leases/{stage.name}-{fingerprint}"):
            found = self.find(stage.name, fingerprint)
            failed = self._failed(found) if found else 0
            if found and not failed:
                return found
            folder = self.work / stage.name / fingerprint
            started = time.time()
            try:
                with reporting_disk(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    counts = build(folder)
            except NothingGPTError as error:
                if found is None:
                    raise
                say(f"{stage.name}: its {failed} failed rows cannot be tried again ({error}); going on without them")
                return found
            if found and counts.get("failed", 0) >= failed:
                shutil.rmtree(folder, ignore_errors=True)
                return found
            return self._publish(stage, fingerprint, settings, inputs, folder, counts, started)

    def adopt(self, stage: Stage, files: Mapping[str, Path]) -> Artifact:
        """Files made elsewhere as an artifact, addressed by their content. Raises FatalError where one is missing."""

        def build(folder: Path) -> Mapping[str, Any]:
            for name, file in files.items():
                shutil.copyfile(file, folder / name)
            return {}

        for file in files.values():
            if not file.is_file():
                raise FatalError(f"{file}: no such file; check the path")
        return self.make(stage, {"files": {name: file_digest(file) for name, file in files.items()}}, {}, build)

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """The artifact, or None where it is missing or damaged: then it is to be made again."""
        key = f"{stage}/{fingerprint}"
        manifest = self.manifest(key)
        if manifest is None:
            return None
        for name, entry in manifest.files.items():
            try:
                file = self.store.fetch(f"{key}/{name}")
            except FileNotFoundError:
                return None
            if file.stat().st_size != entry.size or file_digest(file) != entry.sha256:
                return None
        return Artifact(self.store.uri, stage, fingerprint, manifest.digest, reused=True)

    def manifest(self, key: str) -> Manifest | None:
        """The manifest at `<stage>/<fingerprint>`, or None where there is none that can be read."""
        data = self.store.read(f"{key}/{MANIFEST}")
        try:
            return None if data is None else Manifest.model_validate_json(data)
        except ValidationError:
            return None

    def counts(self, artifact: Artifact) -> dict[str, Any]:
        """What the stage counted when it made the artifact."""
        manifest = self.manifest(artifact.key)
        return manifest.counts if manifest else {}

    def file(self, artifact: Artifact, name: str) -> Path:
        """A local copy of one of the artifact's files, not to be changed."""
        return self.store.fetch(f"{artifact.key}/{name}")

    def folder(self, artifact: Artifact) -> Path:
        """A local folder with all of the artifact's files, not to be changed."""
        manifest = self.manifest(artifact.key)
        for name in manifest.files if manifest else ():
            self.file(artifact, name)
        return self.file(artifact, MANIFEST).parent

    def _failed(self, artifact: Artifact) -> int:
        manifest = self.manifest(artifact.key)
        return manifest.failed if manifest else 0

    def _publish(
        self,
        stage: Stage,
        fingerprint: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        folder: Path,
        counts: Mapping[str, Any],
        started: float,
    ) -> Artifact:
        """The folder's files into the store, the manifest last."""
        found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        names = [path.as_posix() for path in found if not any(part.startswith((".", "_")) for part in path.parts)]
        key = f"{stage.name}/{fingerprint}"
        for name in names:
            self.store.upload(folder / name, f"{key}/{name}")
        files = {
            name: FileEntry(size=(folder / name).stat().st_size, sha256=file_digest(folder / name)) for name in names
        }
        manifest = Manifest(
            stage=stage.name,
            version=stage.version,
            settings=dict(settings),
            counts=dict(counts),
            inputs={name: artifact.digest for name, artifact in inputs.items()},
            lineage={name: artifact.key for name, artifact in inputs.items()},
            files=files,
            seconds=time.time() - started,
            created=started,
        )
        self.store.write(f"{key}/{MANIFEST}", manifest.model_dump_json(indent=2).encode())
        shutil.rmtree(folder, ignore_errors=True)
        return Artifact(self.store.uri, stage.name, fingerprint, manifest.digest)


def fingerprint_of(stage: Stage, settings: Mapping[str, Any], inputs: Mapping[str, Artifact]) -> str:
    """What names an artifact: a digest of the stage and all that it is made from (16 hexadecimal digits)."""
    return digest(
        {
            "stage": stage.name,
            "version": stage.version,
            "settings": dict(settings),
            "inputs": {name: artifact.digest for name, artifact in inputs.items()},
        }
    )[:16]


@contextmanager
def lease(store: Store, key: str) -> Iterator[None]:
    """Holds a named lease, waiting while another process holds it. A holder that died is noticed at once on the same
    machine, and elsewhere when its lease runs out; a living one renews it. One that was suspended for longer than its
    lease may have lost it to another machine: then it leaves it alone."""
    waiting = False
    while not (_is_free(held := store.read(key)) and store.swap(key, mine := _claim(), held)):
        if not waiting:
            say(f"waiting for another run that is at work on {key.removeprefix('leases/')}")
            waiting = True
        time.sleep(0.2)
    done = threading.Event()

    def renew() -> None:
        nonlocal mine
        while not done.wait(LEASE_SECONDS / 4):
            if not store.swap(key, renewed := _claim(), mine):
                return
            mine = renewed

    renewer = threading.Thread(target=renew, daemon=True, name="lease")
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()
        if store.read(key) == mine:
            store.delete(key)


def live_leases(store: Store) -> list[str]:
    """Keys of the leases that somebody holds now."""
    return [key for key in store.list("leases") if not _is_free(store.read(key))]


class _Claim(BaseModel):
    """Who holds a lease, and until when (Unix time, s) if he does not renew it."""

    host: str
    pid: PositiveInt
    started: float
    """When the holder's process started: a process id is used again."""
    expires: float


def _claim() -> bytes:
    me, expires = psutil.Process(), time.time() + LEASE_SECONDS
    claim = _Claim(host=socket.gethostname(), pid=me.pid, started=me.create_time(), expires=expires)
    return claim.model_dump_json().encode()


def _is_free(claim: bytes | None) -> bool:
    try:
        holder = _Claim.model_validate_json(claim or b"")
    except ValidationError:  # none, or one that a crash of the machine damaged
        return True
    if holder.host != socket.gethostname():
        return time.time() > holder.expires
    try:
        process = psutil.Process(holder.pid)
        other = abs(process.create_time() - holder.started) > CLOCK_SECONDS
        return other or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
