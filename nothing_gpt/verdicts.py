"""Verdicts on sets of completions: an LLM judge names the best and the worst of each set, in one or two orders.

A verdict's key is what the judge is shown, so a verdict is never asked for twice. Replies are kept raw and parsed when
they are read: a mended parser costs no call. `consensus` is the agreement rule.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nothing_gpt.config import JudgeSettings
from nothing_gpt.endpoint import Endpoint, Service
from nothing_gpt.errors import BadRowError, FatalError
from nothing_gpt.journal import Journal
from nothing_gpt.progress import progress
from nothing_gpt.records import CompletionSet, Message, digest, share, whole_characters
from nothing_gpt.replies import Reply
from nothing_gpt.store import Store

RUBRIC = (Path(__file__).parent / "rubric.md").read_text(encoding="utf-8")
REASKS = 1

_SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "strict": True,
        "schema": {
            "type": "object",
            "additionalProperties": False,
            "required": ["reason", "best", "worst", "tie"],
            "properties": {
                "reason": {"type": "string"},
                "best": {"type": "integer"},
                "worst": {"type": "integer"},
                "tie": {"type": "boolean"},
            },
        },
    },
}


@dataclass(frozen=True)
class Verdict:
    """One vote. `order[k]` is the index of the completion shown as number k + 1; `best` and `worst` are indices."""

    order: tuple[int, ...]
    best: int
    worst: int
    tie: bool
    reason: str
    model: str


@dataclass(frozen=True)
class Ranking:
    """What the votes agree on: indices of the best and the worst completion."""

    best: int
    worst: int


def consensus(votes: Sequence[Verdict]) -> Ranking | str:
    """The ranking if every vote names the same best and the same worst, otherwise the reason why there is none.

    Position bias is systematic (arXiv 2406.07791): a judge that prefers a place rather than a text disagrees with
    itself when the order is reversed, and its set is dropped.
    """
    if any(vote.tie for vote in votes):
        return "tie"
    if len({(vote.best, vote.worst) for vote in votes}) != 1:
        return "votes disagree"
    return Ranking(votes[0].best, votes[0].worst)


def parse_verdict(text: str, count: int) -> tuple[int, int, bool, str]:
    """(best, worst, tie, reason) of a reply on `count` completions, best and worst as indices from 0.

    Reads the reply as JSON, else its fenced block, else its first JSON object.

    Raises:
        BadRowError: the reply holds no possible verdict.
    """
    value = _first_object(text)
    if value is None:
        raise BadRowError("the reply holds no JSON object")
    tie, best, worst = value.get("tie", False), value.get("best"), value.get("worst")
    reason = value.get("reason", "")
    if not isinstance(tie, bool) or not isinstance(reason, str):
        raise BadRowError('"tie" must be true or false and "reason" a string')
    reason = whole_characters(reason)
    if tie:
        return 0, 0, True, reason
    if not (type(best) is int and type(worst) is int):
        raise BadRowError('"best" and "worst" must be whole numbers')
    if not (1 <= best <= count and 1 <= worst <= count) or best == worst:
        raise BadRowError(f'"best" and "worst" must be two different numbers from 1 to {count}')
    return best - 1, worst - 1, False, reason


def question(conversation: Sequence[Message], completions: Sequence[str]) -> list[Message]:
    """What the judge is sent. The material is one JSON document, out of which no text can break."""
    document = {
        "conversation": list(conversation),
        "completions": [{"number": n, "text": text} for n, text in enumerate(completions, 1)],
    }
    return [
        Message(role="system", content=RUBRIC),
        Message(role="user", content=json.dumps(document, ensure_ascii=False, indent=1)),
    ]


class Judging:
    """Verdicts on sets of completions by one judge: `ask`, then `votes` a set. A context manager."""

    def __init__(self, store: Store, settings: JudgeSettings, service: Service):
        self._settings = settings
        self._service = service
        self._failures: dict[str, str] = {}
        self._plain = False
        self._journal = Journal(
            store,
            "judging/"
            + digest(
                {
                    "judge": service.identity,
                    "temperature": settings.temperature,
                    "max_tokens": settings.max_tokens,
                    "rubric": RUBRIC,
                }
            )[:16],
        )
        self.usage: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._journal.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._journal.__exit__(*exception)

    def orders(self, item: CompletionSet) -> list[tuple[int, ...]]:
        """The orders in which the set is shown: one that follows from its id and the seed, and its reverse."""
        first = tuple(
            sorted(
                range(len(item.completions)),
                key=lambda i: share(digest(item.completions[i]) + item.prompt.id, self._settings.seed, "order"),
            )
        )
        return [first, first[::-1]][: self._settings.votes]

    def missing(self, item: CompletionSet) -> list[tuple[int, ...]]:
        """The orders of the set that still want a usable reply."""
        return [order for order in self.orders(item) if self._read(item, order) is None]

    def ask(self, sets: Sequence[CompletionSet], label: str) -> None:
        """Asks for all missing verdicts; connects only if there are any.

        Raises:
            FatalError: no call can be answered, the spending limit is reached, or more than `max_failed_share` of the
                verdicts could not be had.
            TransientError: the endpoint stopped answering. What was answered is kept in all cases.
        """
        waiting = [(item, order) for item in sets for order in self.missing(item)]
        if not waiting:
            return
        total = sum(len(self.orders(item)) for item in sets)
        asyncio.run(self._ask(waiting, total, label))
        limit = self._settings.max_failed_share
        if len(self._failures) > limit * total:
            raise FatalError(
                f"{label}: {len(self._failures)} of {total} verdicts failed (judge.max_failed_share is "
                f"{limit}); the first: {next(iter(self._failures.values()))}"
            )

    def votes(self, item: CompletionSet) -> list[Verdict] | str:
        """The set's votes, or the reason why some could not be had."""
        votes = [self._read(item, order) for order in self.orders(item)]
        whole = [vote for vote in votes if vote is not None]
        if len(whole) == len(votes):
            return whole
        return next(
            (self._failures[key] for order in self.orders(item) if (key := _key(item, order, 0)) in self._failures),
            "not asked",
        )

    async def _ask(self, waiting: Sequence[tuple[CompletionSet, tuple[int, ...]]], total: int, label: str) -> None:
        settings = self._settings
        endpoint = Endpoint(self._service, settings, "judge")
        with progress(label, total, total - len(waiting)) as advance:
            async with endpoint:

                async def judge(job: tuple[CompletionSet, tuple[int, ...]]) -> None:
                    item, order = job
                    try:
                        await self._judge(endpoint, item, order)
                    except BadRowError as error:
                        self._failures[_key(item, order, 0)] = str(error)
                    cost = endpoint.meter.cost_usd
                    advance(note=f"${cost:.2f}" if cost else "")

                await endpoint.each(waiting, lambda _: 1, judge)
        self.usage = endpoint.meter.figures()

    async def _judge(self, endpoint: Endpoint, item: CompletionSet, order: tuple[int, ...]) -> None:
        """Asks once, and once more with the error shown where the reply is no verdict."""
        messages = question(item.prompt.messages, [item.completions[i] for i in order])
        problem = BadRowError("not asked")
        for attempt in range(REASKS + 1):
            key = _key(item, order, attempt)
            if key not in self._journal:
                reply = await self._reply(endpoint, messages)
                self._journal.add(
                    key,
                    {
                        "text": reply.choices[0].text,
                        "model": reply.model,
                        "finish_reason": reply.choices[0].finish_reason,
                    },
                )
            text = self._journal[key]["text"]
            try:
                parse_verdict(text, len(order))
                return
            except BadRowError as error:
                problem = error
            messages = [
                *messages,
                Message(role="assistant", content=text or "(empty)"),
                Message(role="user", content=f"That cannot be used: {problem}. Answer with one JSON object."),
            ]
        raise BadRowError(f"no usable verdict after {REASKS + 1} replies: {problem}")

    async def _reply(self, endpoint: Endpoint, messages: list[Message]) -> Reply:
        """One reply, constrained to the schema where the endpoint can, with twice the tokens where it was cut."""
        settings = self._settings
        parameters: dict[str, Any] = {} if settings.temperature is None else {"temperature": settings.temperature}
        if not self._plain:
            parameters["response_format"] = _SCHEMA
        try:
            reply = await endpoint.chat(messages, settings.max_tokens, **parameters)
        except BadRowError as error:
            if self._plain or not re.search("response_format|json_schema|schema", str(error)):
                raise
            self._plain = True
            return await self._reply(endpoint, messages)
        if reply.choices[0].finish_reason == "length":
            reply = await endpoint.chat(messages, 2 * settings.max_tokens, **parameters)
        return reply

    def _read(self, item: CompletionSet, order: tuple[int, ...]) -> Verdict | None:
        for attempt in range(REASKS + 1):
            key = _key(item, order, attempt)
            if key not in self._journal:
                return None
            row = self._journal[key]
            try:
                best, worst, tie, reason = parse_verdict(row["text"], len(order))
            except BadRowError:
                continue
            return Verdict(order, order[best], order[worst], tie, reason, row["model"])
        return None


def _key(item: CompletionSet, order: tuple[int, ...], attempt: int) -> str:
    return digest({"prompt": item.prompt.id, "shown": [item.completions[i] for i in order]})[:32] + f"/{attempt}"


def _first_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text, wherever it stands: alone, in a fenced block, or amid prose."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return None
