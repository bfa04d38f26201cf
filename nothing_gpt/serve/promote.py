"""Stage 7: the candidate becomes what the stable name answers with, on a running vLLM, without a restart.

Load under a versioned name, smoke-test, swap the stable name, prove by answers that it now is the candidate, then
write the registry. Whatever fails on the way, the former adapter serves on and the registry is untouched. One switch
at a time. It trusts the gate: whether the candidate deserves it was decided before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import Any

import openai

from nothing_gpt.adapters import adapter_digest, changed_share, validate_adapter
from nothing_gpt.artifacts import Workshop, lease
from nothing_gpt.endpoint import classify
from nothing_gpt.errors import FatalError, NothingGPTError
from nothing_gpt.records import Message
from nothing_gpt.serve import fetch
from nothing_gpt.serve.registry import (
    Approval,
    Registry,
    Version,
    promoted,
    read_registry,
    rolled_back,
    swap,
    unchanged,
)
from nothing_gpt.store import Store
from nothing_gpt.vllm_admin import VLLM

LEASE = "leases/serving"
PROOF_TOKENS = 48
FIRST_TOKENS = 8
"""So many tokens must agree for two answers to be one adapter's; later ones may drift apart by rounding."""
NOISE = 0.02
"""Log-probabilities of one adapter differ by less between two requests, also in bfloat16."""


@dataclass(frozen=True)
class Server:
    """The live vLLM: its address and key, the stable name, and the base its adapters must fit, where it is at hand.
    `adapters` is the folder into which a fetcher brings it adapters (fetch.py); None: it sees our own paths."""

    url: str
    name: str
    base: Path | None = None
    api_key: str | None = field(default=None, repr=False)
    adapters: str | None = None

    @property
    def admin(self) -> VLLM:
        return VLLM(self.url, self.api_key)

    def path(self, folder: Path) -> str:
        """An adapter's folder, in our store's <stage>/<fingerprint>, as the server sees it."""
        return f"{self.adapters}/{folder.parent.name}/{folder.name}" if self.adapters else str(folder)

    def load(self, store: Store, name: str, folder: Path, in_place: bool = False) -> None:
        """Serves the adapter in the folder as `name`. Raises as `VLLM.load`, and as `fetch.load`."""
        if self.adapters:
            fetch.load(store, self.admin, name, self.path(folder), in_place)
        else:
            self.admin.load(name, str(folder), in_place)


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
    """Folder of a version's adapter; None: the starting one's. Raises FatalError where its files are gone."""
    if version is None:
        return start
    found = workshop.find(*version.artifact.split("/", 1))
    if found is None:
        raise FatalError(
            f"{version.name} version {version.version}: its files ({version.artifact}) are gone from the store"
        )
    return workshop.folder(found)


def promote(
    workshop: Workshop,
    candidate: Candidate,
    start: Path,
    server: Server,
    conversation: Sequence[Message],
    replaces: int | EllipsisType | None = ...,
) -> Version:
    """Serves the candidate under the stable name and records it, if it is not the current version already. `start` is
    the adapter that it was trained from, and also what the stable name falls back to while nothing is promoted.
    `conversation` is a prompt, better a long one. `replaces` is the version that was current when the candidate was
    compared with what is served (None: the starting adapter); left out, whichever is current now.

    Raises:
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
    if replaces is not ... and replaces != registry.current and not (current and current.digest == digest):
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
        if already := is_current(store, candidate.folder):  # promoted before, maybe by another run just now
            registry = after = read_registry(store)
        _switch(workshop, registry, after, candidate.folder, start, server, conversation)
    return already or after.versions[-1]


def roll_back(workshop: Workshop, start: Path, server: Server, conversation: Sequence[Message]) -> Version | None:
    """Makes the version that the current one replaced current again, on the server too; returns it (None: the starting
    adapter).

    Raises:
        FatalError: nothing is promoted, or as `promote`.
    """
    registry = read_registry(workshop.store)
    after = rolled_back(registry)
    target = after.current_version
    with lease(workshop.store, LEASE):
        folder = version_folder(workshop, target, start)
        _switch(workshop, registry, after, folder, start, server, conversation)
    return target


def roll_back_unserved(store: Store) -> Version | None:
    """As `roll_back`, where no server runs: only the registry changes. Raises FatalError where nothing is promoted."""
    registry = read_registry(store)
    after = rolled_back(registry)
    with lease(store, LEASE):
        swap(store, registry, after)
    return after.current_version


def _switch(
    workshop: Workshop,
    registry: Registry,
    after: Registry,
    folder: Path,
    start: Path,
    server: Server,
    conversation: Sequence[Message],
) -> None:
    """Swaps the stable name to `folder`, proves it, and writes `after` in place of `registry`; on any failure the
    stable name goes back to what the store's registry says."""
    store, path = workshop.store, server.path(folder)
    unchanged(store, registry)
    served = server.admin.models()
    versioned = versioned_name(server.name, adapter_digest(folder))
    if versioned not in served:
        server.load(store, versioned, folder)
    proof = _answer(server, versioned, conversation)
    # A switch that was killed half-way may have left the stable name with this adapter already.
    other = served.get(server.name) not in (None, path)
    before = _answer(server, server.name, conversation) if other else None
    try:
        server.load(store, server.name, folder, in_place=True)
        root = server.admin.models().get(server.name)
        if root != path:
            raise FatalError(f"promote: {server.url} serves {server.name!r} from {root}, not from {path}")
        now = _answer(server, server.name, conversation)
        if not _alike(now, proof, FIRST_TOKENS) or (before and _alike(now, before, PROOF_TOKENS)):
            raise FatalError(f"promote: after the switch {server.name!r} does not answer as the new adapter does")
        swap(store, registry, after)
    except BaseException as failure:
        try:
            server.load(store, server.name, current_folder(workshop, start), in_place=True)
        except NothingGPTError as error:
            raise type(error)(f"{failure}; and the former adapter cannot be put back: {error}") from None
        raise


def _called(version: int | None) -> str:
    return f"version {version}" if version else "the starting adapter"


def versioned_name(name: str, digest: str) -> str:
    """Name that says which adapter answers, whatever the stable name stands for today."""
    return f"{name}-{digest[:12]}"


def _answer(server: Server, model: str, conversation: Sequence[Message]) -> list[tuple[str, float]]:
    """The model's greedy answer as (token, log-probability): what tells two adapters apart."""
    client = openai.OpenAI(base_url=server.url, api_key=server.api_key or "none", max_retries=2)
    messages: Any = list(conversation)
    try:
        reply = client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=PROOF_TOKENS, logprobs=True
        )
    except openai.APIError as error:
        raise classify(error, server.url, model) from None
    logprobs = reply.choices[0].logprobs
    if logprobs is None or not logprobs.content:
        raise FatalError(f"promote: {model!r} gives no answer to a test prompt; it is not promoted")
    return [(token.token, token.logprob) for token in logprobs.content]


def _alike(one: list[tuple[str, float]], other: list[tuple[str, float]], tokens: int) -> bool:
    """Whether two answers begin with the same tokens at the same log-probabilities, but for arithmetic noise."""
    one, other = one[:tokens], other[:tokens]
    return [token for token, _ in one] == [token for token, _ in other] and all(
        abs(a - b) < NOISE for (_, a), (_, b) in zip(one, other, strict=True)
    )
