"""Asking in batches in the tests: a caller that keeps what it was handed, as the judge's journal does."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import SecretStr

from nothing_gpt.batches import ask_in_batches, batch_price
from nothing_gpt.config import EndpointSettings, Price
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import BadRowError
from nothing_gpt.replies import Meter, Reply
from nothing_gpt.store import Store
from tests.fake_batches import FakeBatches

FOLDER = "judge/batches"
KEY = "sk-a-secret-key"


class Killed(BaseException):
    """The process is gone: nothing after it is done."""


def body(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 100}


class Stand:
    """`replies` are those that all runs so far were handed, `aside` the last run's errors. A run asks for the replies
    that are not there yet."""

    def __init__(self, provider: FakeBatches, store: Store):
        self.provider, self.store = provider, store
        self.replies: dict[str, Reply] = {}
        self.aside: dict[str, BadRowError] = {}
        self.slept: list[float] = []
        self.sleep: Callable[[float], None] = self.slept.append
        self.handle = self.keep

    def run(
        self,
        texts: Iterable[str],
        price: Price | None = None,
        max_cost_usd: float | None = None,
        kept: Iterable[Reply] = (),
        model: str = "fake",
        others_usd: float = 0.0,
    ) -> Meter:
        settings = EndpointSettings(prices={model: price} if price else {}, max_cost_usd=max_cost_usd)
        service = Service(lambda: self.provider.url, model, "judge-1", SecretStr(KEY))
        asked = [(text, body(text)) for text in texts if text not in self.replies]
        self.aside = {}
        meter, answered_by = Meter(batch_price(price), others_usd=others_usd), ""
        for reply in kept:
            meter.recall(reply)
            answered_by = reply.model
        ask_in_batches(
            service, settings, "judge", self.store, FOLDER, asked, self.handle, "judging",
            meter=meter, answered_by=answered_by, sleep=self.sleep,
        )  # fmt: skip
        return meter

    def keep(self, text: str, outcome: Reply | BadRowError) -> None:
        assert text not in self.replies, f"{text} was handed over twice"
        assert text not in self.aside, f"{text} was handed over twice"
        if isinstance(outcome, Reply):
            self.replies[text] = outcome
        else:
            self.aside[text] = outcome

    def said(self) -> dict[str, str]:
        return {text: reply.choices[0].text for text, reply in self.replies.items()}

    def tickets(self) -> list[dict[str, Any]]:
        return [json.loads(self.store.read(name) or b"") for name in self.store.list(FOLDER)]


def texts(count: int) -> list[str]:
    return [f"t{number}" for number in range(count)]


def echoes(count: int) -> dict[str, str]:
    """What the fake says to `texts(count)` where nothing else is scripted."""
    return {text: f"[JERRY] {text} 0" for text in texts(count)}


@contextmanager
def killed() -> Iterator[None]:
    """A run that is killed in the block."""
    try:
        yield
    except Killed:
        return
    raise AssertionError("nothing was killed")
