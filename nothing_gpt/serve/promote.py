"""Stage 7: the candidate becomes what the stable name answers with, on a running vLLM, without a restart; the way back;
and the way to make server and registry agree again.

All three are one switch (`switch.py`) with the registry written at its end. Whatever fails on the way, the former
adapter serves on and the registry is untouched. One switch at a time. Promotion trusts the gate: whether the candidate
deserves it was decided before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nothing_gpt.adapters import adapter_digest, changed_share, validate_adapter
from nothing_gpt.artifacts import Artifact, Workshop, lease
from nothing_gpt.errors import FatalError, GateFailed, TransientError
from nothing_gpt.progress import say
from nothing_gpt.records import Message
from nothing_gpt.serve.registry import (
    Approval,
    Registry,
    Rollback,
    Version,
    promoted,
    read_registry,
    rolled_back,
    swap,
    unchanged,
)
from nothing_gpt.serve.switch import Server, switch
from nothing_gpt.store import Store

LEASE = "leases/serving"
TEST_PROMPT = [
    Message(
        role="user",
        content="INT. COFFEE SHOP. JERRY and GEORGE sit in their booth. KRAMER slides in with a box that hums. ELAINE "
        "comes in from the rain, shakes out somebody else's umbrella, and wants to know who ordered for her.\n" * 6,
    )
]
"""What adapters are asked where no held-out prompt is at hand; it fills several blocks of the prefix cache."""


@dataclass(frozen=True)
class Candidate:
    """An adapter that passed the gate: its folder, and what to write into the registry."""

    folder: Path
    artifact: str
    fingerprint: str
    place: str
    metrics: dict[str, Any]
    reasons: list[str]
    approval: Approval | None = None
    lineage: dict[str, str] = field(default_factory=dict)


def is_current(store: Store, folder: Path) -> Version | None:
    """The current version, if it is this very adapter."""
    current = read_registry(store).current_version
    return current if current and current.digest == adapter_digest(folder) else None


def current_folder(workshop: Workshop, start: Path) -> Path:
    """Folder of the adapter that the stable name stands for: the current version's, else the starting one's."""
    return version_folder(workshop, read_registry(workshop.store).current_version, start)


def version_folder(workshop: Workshop, version: Version | None, start: Path) -> Path:
    """Folder of a version's adapter; None: the starting one's. Raises as `adapter_of`."""
    return workshop.folder(adapter_of(workshop, version)) if version else start


def adapter_of(workshop: Workshop, version: Version) -> Artifact:
    """A version's adapter. Raises FatalError where its files are gone, or are others: made again under the same key,
    training need not come to the same weights, and those were never compared with anything."""
    found = workshop.find(*version.artifact.split("/", 1))
    if found and adapter_digest(workshop.folder(found)) == version.digest:
        return found
    raise FatalError(
        f"{version.name} version {version.version}: its files ({version.artifact}) are "
        f"{'not those that were promoted' if found else 'gone from the store'}; make another version current with "
        "`nothing-gpt adapters rollback` or `promote`"
    )


def promote(
    workshop: Workshop,
    candidate: Candidate,
    start: Path,
    server: Server,
    replaces: int | None,
    conversation: Sequence[Message] = TEST_PROMPT,
) -> Version:
    """Serves the candidate under the stable name and records it, if it is not the current version already. What a
    person took back wants an approval. `start` is the adapter that it was trained from, and also what the stable name
    falls back to while nothing is promoted. `replaces` is the version that was current when the candidate was compared
    with what is served (None: the starting adapter). `conversation` is a prompt, better a long one.

    Raises:
        GateFailed: this adapter was taken back, and nobody has approved of it.
        FatalError: the candidate is not servable or unchanged, the server refuses it, its answers do not change,
            another version than `replaces` is current, or another promotion came first. The former adapter then serves
            as before.
        TransientError: the server does not answer.
    """
    store = workshop.store
    registry = read_registry(store)
    validate_adapter(candidate.folder, server.base)
    if changed_share(start, candidate.folder) == 0:
        raise FatalError(f"promote: {candidate.folder} is the starting adapter unchanged; there is nothing to promote")
    digest = adapter_digest(candidate.folder)
    current = registry.current_version
    already = current is not None and current.digest == digest
    if not (already or candidate.approval):
        _refuse_taken_back(registry, digest)
    if replaces != registry.current and not already:
        raise FatalError(
            f"promote: {_called(registry.current)} is current now, and the candidate was compared with "
            f"{_called(replaces)}; run again, and it is compared with that one"
        )
    after = promoted(
        registry,
        name=server.name,
        artifact=candidate.artifact,
        fingerprint=candidate.fingerprint,
        place=candidate.place,
        digest=digest,
        metrics=candidate.metrics,
        reasons=candidate.reasons,
        approval=candidate.approval,
        lineage=candidate.lineage,
    )
    with lease(store, LEASE):
        if promoted_before := is_current(store, candidate.folder):  # maybe by another run just now
            registry = after = read_registry(store)
        _settle(workshop, registry, after, candidate.folder, start, server, conversation)
    return promoted_before or after.versions[-1]


def roll_back(
    workshop: Workshop,
    rollback: Rollback,
    start: Path,
    server: Server,
    conversation: Sequence[Message] = TEST_PROMPT,
) -> Version | None:
    """Makes the version that the current one replaced current again, on every replica too; returns it (None: the
    starting adapter). A replica that does not answer keeps a bad adapter on none of the others: it is named.

    Raises:
        FatalError: nothing is promoted, or as `promote`. TransientError: no replica answers.
    """
    registry = read_registry(workshop.store)
    after = rolled_back(registry, rollback)
    with lease(workshop.store, LEASE):
        folder = version_folder(workshop, after.current_version, start)
        for error in _settle(workshop, registry, after, folder, start, server, conversation, partly=True):
            say(f"{error}; `nothing-gpt adapters sync`, or the next run, puts it right")
    return after.current_version


def roll_back_unserved(store: Store, rollback: Rollback) -> Version | None:
    """As `roll_back`, where no server runs: only the registry changes. Raises FatalError where nothing is promoted."""
    registry = read_registry(store)
    after = rolled_back(registry, rollback)
    with lease(store, LEASE):
        swap(store, registry, after)
    return after.current_version


def sync(
    workshop: Workshop, start: Path, server: Server, conversation: Sequence[Message] = TEST_PROMPT
) -> Version | None:
    """Makes every replica serve what the registry says is current, and a restart load it; returns that version (None:
    the starting adapter). The registry stays as it is.

    Raises:
        FatalError: the files of the current version are gone, or as `promote`.
        TransientError: a replica does not answer; the others are put right.
    """
    with lease(workshop.store, LEASE):
        registry = read_registry(workshop.store)
        folder = version_folder(workshop, registry.current_version, start)
        if silent := _settle(workshop, registry, registry, folder, start, server, conversation, partly=True):
            raise silent[0]
    return registry.current_version


def _settle(
    workshop: Workshop,
    registry: Registry,
    after: Registry,
    folder: Path,
    start: Path,
    server: Server,
    conversation: Sequence[Message],
    partly: bool = False,
) -> list[TransientError]:
    """Switches to the adapter in `folder` and writes `after` in place of `registry`; on any failure the stable name
    goes back to what the store's registry says. `partly` as of `switch`."""
    unchanged(workshop.store, registry)
    return switch(
        workshop.store,
        server,
        folder,
        conversation,
        record=lambda: swap(workshop.store, registry, after),
        former=lambda: current_folder(workshop, start),
        partly=partly,
    )


def _refuse_taken_back(registry: Registry, digest: str) -> None:
    """A run that no person looks at must not undo what a person did: its gate saw all this before the rollback too."""
    for version in reversed(registry.versions):
        if version.digest == digest and version.taken_back:
            raise GateFailed(
                f"promote: this adapter is version {version.version}, which was taken back by {version.taken_back.by}: "
                f"{version.taken_back.reason}; it wants a person's word, by `nothing-gpt adapters promote "
                f"{version.version}` or gate.approval=required"
            )


def _called(version: int | None) -> str:
    return f"version {version}" if version else "the starting adapter"
