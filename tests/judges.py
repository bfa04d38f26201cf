"""Judges for the tests: what they are shown, what they answer, and what comes of asking them."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from nothing_gpt.config import JudgeSettings
from nothing_gpt.endpoint import Service
from nothing_gpt.judging import Judging
from nothing_gpt.preferences import JudgedSet
from nothing_gpt.records import CompletionSet
from nothing_gpt.store import Store
from tests.fake_endpoint import Answer, Request, says


def verdict_text(best: Any, worst: Any, **more: Any) -> str:
    return json.dumps({"reason": "r", "best": best, "worst": worst, "tie": False} | more)


def document(request: Request) -> dict[str, Any]:
    """What a judge is asked about."""
    return json.loads(request["messages"][1]["content"])


def scene(request: Request) -> str:
    return document(request)["conversation"][-1]["content"]


def shown(request: Request) -> list[str]:
    """The completions, in the order in which they are shown."""
    return [completion["text"] for completion in document(request)["completions"]]


def asked_again(request: Request) -> bool:
    """Whether the request shows the judge an error."""
    return len(request["messages"]) > 2


def prefers(best: str, worst: str, **more: Any) -> Callable[[Request], Answer]:
    """A judge that knows what it wants, wherever it stands; it goes by the name that it was called."""
    return lambda request: says(
        verdict_text(shown(request).index(best) + 1, shown(request).index(worst) + 1),
        model=request["model"],
        **more,
    )


def judged(store: Store, service: Service, sets: Sequence[CompletionSet], **settings: Any) -> list[JudgedSet]:
    """Every set, once all that was missing has been asked for."""
    wanted: dict[str, Any] = {"max_failed_share": 1.0} | settings
    with Judging(store, JudgeSettings(**wanted), service) as judging:
        judging.ask(sets, "judge")
        return [judging.result(item) for item in sets]


def usage(store: Store, service: Service, sets: Sequence[CompletionSet], **settings: Any) -> dict[str, Any]:
    with Judging(store, JudgeSettings(**settings), service) as judging:
        judging.ask(sets, "judge")
        return judging.usage


def nobody() -> str:
    """An address that may not be asked for."""
    raise AssertionError("connected although nothing is missing")
