"""What the stable name means on a running vLLM, and on every replica of it: changed without a restart, and proved.

Load under a versioned name, smoke-test, swap the stable name, prove by answers that it now is the new adapter. Which
adapter that is to be, and whether it deserves it, is decided elsewhere (`promote.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import openai
from tenacity import Retrying, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed

from nothing_gpt.adapters import adapter_digest
from nothing_gpt.endpoint import classify
from nothing_gpt.errors import FatalError, NothingGPTError, TransientError
from nothing_gpt.records import Message
from nothing_gpt.serve import fetch
from nothing_gpt.store import Store
from nothing_gpt.vllm_admin import VLLM

PROOF_TOKENS = 48
FIRST_TOKENS = 8
"""So many tokens must agree for two answers to be one adapter's; later ones may drift apart by rounding."""
NOISE = 0.02
"""Log-probabilities of one adapter differ by less between two requests, also in bfloat16."""

ANSWER_TIMEOUT_S = 120.0
"""As long as for a load. A server that takes requests and answers none must not hold up the run that looks at it."""

START_S, POLL_S = 1800.0, 5.0
"""Longest wait for a server that was deployed anew, and how often it is looked for."""


@dataclass(frozen=True)
class Server:
    """The live vLLM: its address and key, the stable name, and the base its adapters must fit, where it is at hand.

    `replicas` are further ones that serve the same. What a restart will load is the adapter in the folder
    to which `link` points; with `adapters` it is the fetcher's work (fetch.py), and this is the folder into which it
    brings adapters (None: the server sees our own paths).
    """

    url: str
    name: str
    base: Path | None = None
    api_key: str | None = field(default=None, repr=False)
    adapters: str | None = None
    replicas: tuple["Server", ...] = ()
    link: Path | None = None

    @property
    def admin(self) -> VLLM:
        return VLLM(self.url, self.api_key)

    @property
    def each(self) -> list["Server"]:
        """Every replica, this one first."""
        return [replace(self, replicas=()), *self.replicas]

    @property
    def root(self) -> str | None:
        """Path from which the server at `url` serves the stable name."""
        return self.admin.models().get(self.name)

    def path(self, folder: Path) -> str:
        """An adapter's folder, in our store's <stage>/<fingerprint>, as the server sees it."""
        return f"{self.adapters}/{folder.parent.name}/{folder.name}" if self.adapters else str(folder)

    def load(self, store: Store, name: str, folder: Path, in_place: bool = False) -> None:
        """Serves the adapter in the folder as `name`. Raises as `VLLM.load`, and as `fetch.load`."""
        if self.adapters:
            fetch.load(store, self.admin, name, self.path(folder), in_place)
        else:
            self.admin.load(name, str(folder), in_place)

    def ready(self, store: Store, folder: Path) -> str | None:
        """Has the adapter answer beside the stable name; returns the name, None where that cannot be had."""
        name = versioned_name(self.name, adapter_digest(folder))
        if name not in self.admin.models():
            self.load(store, name, folder)
        return name

    def strays(self, folder: Path) -> list[str]:
        """What is otherwise than it is where the stable name means the adapter in the folder, as sentences."""
        told = [stray for one in self.each if (stray := one._stray(folder))]
        if self._follows(folder):
            return told
        return [*told, f"a restart would not load {self.name!r} from {folder}"]

    def point(self, folder: Path) -> None:
        """Makes a restart load the adapter in the folder."""
        if self.link and not self._follows(folder):
            fetch.point(self.link, folder)

    def _stray(self, folder: Path) -> str | None:
        try:
            root = self.root
        except TransientError as error:
            return str(error)
        if root == self.path(folder):
            return None
        return f"{self.url} serves {self.name!r} from {root}" if root else f"{self.url} does not serve {self.name!r}"

    def _follows(self, folder: Path) -> bool:
        return self.link is None or (self.link.is_symlink() and self.link.readlink() == folder)


@dataclass(frozen=True)
class Redeployed(Server):
    """A vLLM that loads no adapter while it runs, and may be scaled to nothing in between: `deploy` puts one in its
    place that serves the adapter in a folder, and `deployed` is the path of what was deployed last. What proves it is
    the path that the new one names, and that it answers."""

    deploy: Callable[[Path], None] = field(kw_only=True)
    deployed: Callable[[], str | None] = field(kw_only=True)

    @property
    def root(self) -> str | None:
        return self.deployed()  # without waking it up

    def ready(self, store: Store, folder: Path) -> str | None:
        return None

    def load(self, store: Store, name: str, folder: Path, in_place: bool = False) -> None:
        self.deploy(folder)
        attempts = Retrying(
            retry=retry_if_exception_type(TransientError) | retry_if_result(lambda root: root != self.path(folder)),
            stop=stop_after_delay(START_S),
            wait=wait_fixed(POLL_S),
            retry_error_callback=lambda state: None,
        )
        if attempts(lambda: self.admin.models().get(self.name)) is None:
            raise FatalError(
                f"{self.url} does not serve {self.path(folder)} {START_S / 60:g} minutes after a deployment"
            )


def versioned_name(name: str, digest: str) -> str:
    """Name that says which adapter answers, whatever the stable name stands for today."""
    return f"{name}-{digest[:12]}"


def switch(
    store: Store,
    server: Server,
    folder: Path,
    conversation: Sequence[Message],
    record: Callable[[], object],
    former: Callable[[], Path],
    partly: bool = False,
) -> list[TransientError]:
    """Gives the stable name to the adapter in the folder, on every replica, proves it, has a restart load it, and then
    calls `record`. On any failure, also of `record`, all that gets the `former` adapter. With `partly`, replicas that
    do not answer are left as they are, if one does; returns what these say.

    Raises:
        FatalError: the server refuses the adapter, its answers do not change, or the link cannot be written. Whatever
            `record` raises.
        TransientError: a replica does not answer.
    """
    shifts: list[_Shift] = []
    silent: list[TransientError] = []
    for one in server.each:
        try:
            shifts.append(_Shift(store, one, folder, conversation))
        except TransientError as error:
            silent.append(error)
    if silent and not (partly and shifts):
        raise silent[0]
    try:
        for shift in shifts:
            shift.make()
        server.point(folder)
        record()
    except BaseException as failure:
        if error := _put_back(store, server, former):
            raise type(error)(f"{failure}; and the former adapter cannot be put back: {error}") from None
        raise
    return silent


def _put_back(store: Store, server: Server, former: Callable[[], Path]) -> NothingGPTError | None:
    """Gives the stable name back to the former adapter wherever that can be had; returns what went wrong."""
    failed = None
    for one in server.each:
        try:
            one.load(store, one.name, former(), in_place=True)
        except NothingGPTError as error:
            failed = error
    try:
        if server.link and server.link.is_symlink():
            server.point(former())
    except NothingGPTError as error:
        failed = error
    return failed


class _Shift:
    """The change of one replica. It is made ready when it is created: the adapter answers under its versioned name."""

    def __init__(self, store: Store, server: Server, folder: Path, conversation: Sequence[Message]):
        self._store, self._server, self._folder, self._conversation = store, server, folder, conversation
        versioned = server.ready(store, folder)
        self._proof = _answer(server, versioned, conversation) if versioned else None
        # One that was killed half-way may have left the stable name with this adapter already.
        other = versioned and server.root not in (None, server.path(folder))
        before = _answer(server, server.name, conversation) if other else None
        # The same adapter from another path answers as before, which proves nothing.
        self._before = before if before and self._proof and not _alike(before, self._proof, PROOF_TOKENS) else None

    def make(self) -> None:
        server, path = self._server, self._server.path(self._folder)
        server.load(self._store, server.name, self._folder, in_place=True)
        if (root := server.root) != path:
            raise FatalError(f"promote: {server.url} serves {server.name!r} from {root}, not from {path}")
        now = _answer(server, server.name, self._conversation)
        other = self._proof and not _alike(now, self._proof, FIRST_TOKENS)
        if other or (self._before and _alike(now, self._before, PROOF_TOKENS)):
            raise FatalError(
                f"promote: after the switch {server.name!r} does not answer as the new adapter does at {server.url}"
            )


def _answer(server: Server, model: str, conversation: Sequence[Message]) -> list[tuple[str, float]]:
    """The model's greedy answer as (token, log-probability): what tells two adapters apart."""
    key = server.api_key or "none"
    client = openai.OpenAI(base_url=server.url, api_key=key, max_retries=2, timeout=ANSWER_TIMEOUT_S)
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
