"""A running server, a store and adapters to promote: what tests of promotion and of taking back begin with."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.adapters import CONFIG, WEIGHTS
from nothing_gpt.artifacts import Stage, Workshop
from nothing_gpt.errors import NothingGPTError
from nothing_gpt.records import Message
from nothing_gpt.serve.promote import Candidate, promote, roll_back, sync
from nothing_gpt.serve.registry import Approval, Registry, Rollback, Version, read_registry
from nothing_gpt.serve.switch import Server
from nothing_gpt.store import Store
from tests.fake_vllm import OUT, FakeVLLM, save_adapter

NAME = "seinfeld"
ROLLBACK = Rollback(by="anna", reason="not funny", at=2.0)
CONVERSATION = [Message(role="user", content="[JERRY] What is the deal with tests?")]


@dataclass
class Stand:
    """A server with the starting adapter under the stable name, a store, and adapters to promote."""

    vllm: FakeVLLM
    workshop: Workshop
    start: Path
    base: Path

    @property
    def server(self) -> Server:
        return Server(self.vllm.url, NAME, self.base)

    @property
    def store(self) -> Store:
        return self.workshop.store

    @property
    def registry(self) -> Registry:
        return read_registry(self.store)

    def candidate(self, level: float = 0.5, out: int = OUT) -> Candidate:
        """An adapter in the store, where promoted ones are."""
        made = save_adapter(self.start.parent / f"made-{level:g}", level, out)
        adopted = self.workshop.adopt(Stage("adapter", 1), {name: made / name for name in (CONFIG, WEIGHTS)})
        folder = self.workshop.folder(adopted)
        return Candidate(
            folder,
            adopted.key,
            adopted.fingerprint,
            "local",
            {"win_rate": 0.8},
            ["it is better"],
            Approval(by="anna", reason="funnier", at=1.0),
            {"adapter": adopted.key},
        )

    def promote(self, candidate: Candidate) -> Version:
        """As compared with what is current."""
        return self.promote_instead_of(self.registry.current, candidate)

    def promote_instead_of(self, version: int | None, candidate: Candidate) -> Version:
        return promote(self.workshop, candidate, self.start, self.server, version, CONVERSATION)

    def roll_back(self) -> Version | None:
        return roll_back(self.workshop, ROLLBACK, self.start, self.server)

    def sync(self) -> Version | None:
        return sync(self.workshop, self.start, self.server)

    def refused(self, candidate: Candidate) -> NothingGPTError:
        """The error of a promotion that must change nothing: neither what is served nor the registry."""
        before = self.registry
        with pytest.raises(NothingGPTError) as error:
            self.promote(candidate)
        assert self.registry == before
        assert "\n" not in str(error.value)
        return error.value

    def serves(self, adapter: Path) -> bool:
        """Whether the stable name answers as this adapter does, and says that it comes from there."""
        return self.vllm.answers_like(NAME, adapter) and self.vllm.served()[NAME] == str(adapter)


def when_switching(stand: Stand, action: Callable[[], object]) -> None:
    """Does something once, just before the server replaces the stable name's adapter."""
    done = threading.Event()

    def before(route: str, body: Mapping[str, Any]) -> None:
        if body.get("load_inplace") and not done.is_set():
            done.set()
            action()

    stand.vllm.before = before
