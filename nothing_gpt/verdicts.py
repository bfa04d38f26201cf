"""Verdicts on sets of completions: which votes are wanted, the question, what a reply means, what votes agree on.

Pure functions of plain data. Who is asked, and what is kept of the replies, is in `judging.py`.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nothing_gpt.config import JudgeSettings
from nothing_gpt.errors import BadRowError
from nothing_gpt.records import CompletionSet, Message, digest, share, whole_characters
from nothing_gpt.replies import CUT, WITHHELD, Reply

RESPONSE_FORMAT: dict[str, Any] = {
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
"""The reason comes first, so that a model that writes in this order thinks before it decides."""

MOST_OBJECTS = 100
"""Places in a reply at which an object is looked for: a reply of braces alone would take for ever."""

_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Verdict:
    """One vote. `order[k]` is the index of the completion shown as number k + 1; `best` and `worst` are indices, and
    mean nothing in a tie. `model` is the one that answered; the tokens are those of the reply that held the verdict."""

    order: tuple[int, ...]
    best: int
    worst: int
    tie: bool
    reason: str
    model: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Ranking:
    """What the votes agree on: indices of the best and the worst completion."""

    best: int
    worst: int


@dataclass(frozen=True, slots=True)
class Ballot:
    """One vote that is wanted of a judge: on a set, shown in one order.

    `key` names what is shown, whatever order the set lists it in. `row` names what is not whole without the vote: the
    set, or, for a repeat, the repeat alone.
    """

    item: CompletionSet
    order: tuple[int, ...]
    key: str
    row: str
    repeat: bool = False


@dataclass(frozen=True)
class Ask:
    """A request that is due: the messages that follow the question, and whether the token cap is doubled."""

    after: tuple[Message, ...] = ()
    doubled: bool = False


Step = Verdict | Ask | BadRowError
"""What the replies to one question come to."""


def consensus(votes: Sequence[Verdict]) -> Ranking | str:
    """The ranking that more than half of the votes name, otherwise the reason why there is none. A tie names none.

    Position bias is systematic (arXiv 2406.07791): a judge that prefers a place rather than a text disagrees with
    itself when the order is reversed, and its set is dropped.
    """
    named = Counter((vote.best, vote.worst) for vote in votes if not vote.tie)
    for pair, count in named.most_common(1):
        if 2 * count > len(votes):
            return Ranking(*pair)
    ties = len(votes) - named.total()
    return "tie" if votes and 2 * ties >= len(votes) else "votes disagree"


def orders(item: CompletionSet, count: int, seed: int) -> list[tuple[int, ...]]:
    """The orders in which a set is shown, as indices of its completions: one that follows from its content and the
    seed; with a `count` of 2 its reverse too; with 3 also its rotations, so that each completion stands in each place.
    """
    places = range(len(item.completions))
    first = tuple(sorted(places, key=lambda i: share(digest(item.completions[i]) + item.prompt.id, seed, "order")))
    rotations = [first[i:] + first[:i] for i in places[1:]] if count == 3 else []
    return list(dict.fromkeys([first, first[::-1], *rotations] if count > 1 else [first]))


def ballots(item: CompletionSet, settings: JudgeSettings) -> list[Ballot]:
    """What is wanted of each judge on a set, a seeded share of repeats included; nothing where there is no choice."""
    texts = sorted(set(item.completions))
    if len(texts) < 2:
        return []
    row = digest({"prompt": item.prompt.id, "completions": texts})[:32]
    place = {text: str(number) for number, text in enumerate(texts)}
    wanted = [
        Ballot(item, order, f"{row}/{'-'.join(place[item.completions[i]] for i in order)}", row)
        for order in orders(item, settings.votes, settings.seed)
    ]
    if share(row, settings.seed, "repeat") < settings.repeat_share:
        again = f"{wanted[0].key}/again"
        wanted.append(Ballot(item, wanted[0].order, again, again, repeat=True))
    return wanted


def question(rubric: str, conversation: Sequence[Message], completions: Sequence[str]) -> list[Message]:
    """What the judge is sent. The material is one JSON document, out of which no text can break."""
    document = {
        "conversation": list(conversation),
        "completions": [{"number": n, "text": text} for n, text in enumerate(completions, 1)],
    }
    return [
        Message(role="system", content=rubric),
        Message(role="user", content=json.dumps(document, ensure_ascii=False, indent=1)),
    ]


def next_step(replies: Sequence[Reply], order: tuple[int, ...]) -> Step:
    """What the replies to one question come to, in the order in which they came: its verdict, the next request, or why
    it was given up.

    A reply that the token cap cut before its verdict is asked for once more with twice the tokens; one that is no
    verdict, once more with the error shown; one that the provider withheld, not again. Replies that follow a question
    given up are those of a later run, which began anew.
    """
    step: Step = Ask()
    for reply in replies:
        step = _after(step if isinstance(step, Ask) else Ask(), reply, order)
        if isinstance(step, Verdict):
            return step
    if isinstance(step, BadRowError):
        step.attempts = len(replies)
    return step


def parse_verdict(text: str, count: int) -> tuple[int, int, bool, str]:
    """(best, worst, tie, reason) of a reply on `count` completions, best and worst as indices from 0.

    Reads the reply as one JSON object, else its fenced block, else the first object amid its prose. An object without
    "tie" or "reason" is taken as it is: there are judges that answer in numbers alone.

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


def _after(ask: Ask, reply: Reply, order: tuple[int, ...]) -> Step:
    """What the reply to a request comes to."""
    choice = reply.choices[0]
    if choice.finish_reason == WITHHELD:
        return BadRowError("the provider's content filter withheld the verdict")
    try:
        best, worst, tie, reason = parse_verdict(choice.text, len(order))
    except BadRowError as problem:
        if choice.finish_reason == CUT and not ask.doubled:
            return Ask(ask.after, doubled=True)
        if choice.finish_reason == CUT:
            return BadRowError("the verdict was cut at twice judge.max_tokens; raise it")
        if ask.after:
            return BadRowError(f"no usable verdict, asked twice: {problem}")
        error = f"That cannot be used: {problem}. Answer with one JSON object and nothing else."
        shown = Message(role="assistant", content=choice.text.strip() or "(empty)")
        return Ask((shown, Message(role="user", content=error)), ask.doubled)
    return Verdict(
        order,
        order[best],
        order[worst],
        tie,
        reason,
        reply.model,
        choice.finish_reason,
        reply.prompt_tokens,
        reply.completion_tokens,
    )


def _first_object(text: str) -> dict[str, Any] | None:
    """The object that the text begins with, else the first of its fenced blocks, else the first wherever it stands;
    where a thinking model shows its thoughts, of what follows them."""
    if text.lstrip().startswith("{") and (value := _object_in(text)) is not None:
        return value
    answer = text.rpartition("</think>")[2]
    blocks = re.findall(r"```\w*\s(.*?)```", answer, re.DOTALL)
    return next((value for part in [*blocks, answer] if (value := _object_in(part)) is not None), None)


def _object_in(text: str) -> dict[str, Any] | None:
    start = text.find("{")
    for _ in range(MOST_OBJECTS):
        if start < 0:
            return None
        try:
            return _DECODER.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
    return None
