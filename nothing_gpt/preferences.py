"""Preference pairs: which completion is chosen and which rejected, on which side of the split, or why neither.

`pair_of` is the rule, for one judged set at a time. Files are read and written row by row, so that memory does not grow
with them. Figures on the pairs are `quality.py`.
"""

import heapq
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nothing_gpt.config import JudgeSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.records import (
    CompletionSet,
    Message,
    Prompt,
    checked_completions,
    checked_messages,
    read_jsonl,
    share,
    whole_characters,
)
from nothing_gpt.verdicts import Ranking, Verdict, consensus

TRAIN = "train.jsonl"
VAL = "val.jsonl"

DEGENERATE = "degenerate"
NOT_JUDGED = "not judged"
EMPTY = "a side is empty"
EQUAL = "both sides are equal"
CUT = "chosen is cut"


@dataclass(frozen=True, slots=True)
class Pair:
    """A chosen and a rejected completion of one prompt, as texts; `best` and `worst` are their places in the set."""

    prompt: Prompt
    chosen: str
    rejected: str
    best: int
    worst: int


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """A set of completions and its votes, or the reason why it has none. `repeats` are further votes, each in the order
    of one of the votes: they measure the judge and decide nothing."""

    item: CompletionSet
    votes: list[Verdict]
    failed: str | None = None
    repeats: list[Verdict] = field(default_factory=list)


@dataclass(frozen=True)
class Split:
    """How many pairs were written to train on and to validate, and the dropped sets by reason."""

    train: int
    val: int
    drops: Mapping[str, int]


def pair_of(judged: JudgedSet) -> Pair | str:
    """Best and worst of a set whose votes agree, or the reason why the set makes no pair.

    A completion that the token limit cut is never chosen over a whole one: the chat template ends it like a finished
    one, so the adapter would learn to stop in mid-scene. The votes rank only the best and the worst, so no third
    completion may step in, and the set is dropped. Cut against cut, or whole against cut, teaches no such thing.
    """
    if judged.failed is not None or not judged.votes:
        return NOT_JUDGED if len(set(judged.item.completions)) > 1 else DEGENERATE
    ranking = consensus(judged.votes)
    if not isinstance(ranking, Ranking):
        return ranking
    texts, cut = judged.item.completions, judged.item.truncated
    best, worst = ranking.best, ranking.worst
    if not (texts[best].strip() and texts[worst].strip()):
        return EMPTY
    if texts[best].strip() == texts[worst].strip():
        return EQUAL
    if cut[best] and not cut[worst]:
        return CUT
    return Pair(judged.item.prompt, texts[best], texts[worst], best, worst)


def side(prompt: Prompt, settings: JudgeSettings) -> str:
    """`TRAIN` or `VAL`: a threshold on the seeded hash of the prompt's id, so that a prompt never changes sides when
    others are added. The count on the validation side therefore varies about `val_ratio`."""
    return VAL if share(prompt.id, settings.seed, "val") < settings.val_ratio else TRAIN


def write_pairs(judged: Iterable[JudgedSet], folder: Path, settings: JudgeSettings) -> Split:
    """Writes `train.jsonl` and `val.jsonl` into the folder, in the order of the sets; each appears whole or not at
    all."""
    counts: Counter[str] = Counter()
    drops: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix=".pairs-", dir=folder) as mine:
        halves = {name: Path(mine, name) for name in (TRAIN, VAL)}
        with ExitStack() as stack:
            files = {name: stack.enter_context(half.open("w", encoding="utf-8")) for name, half in halves.items()}
            for item in judged:
                outcome = pair_of(item)
                if isinstance(outcome, str):
                    drops[outcome] += 1
                    continue
                name = side(outcome.prompt, settings)
                files[name].write(json.dumps(pair_row(outcome), ensure_ascii=False) + "\n")
                counts[name] += 1
        for name, half in halves.items():
            half.replace(folder / name)
    return Split(counts[TRAIN], counts[VAL], drops)


def pair_row(pair: Pair) -> dict[str, Any]:
    """A pair in TRL's conversational DPO format, which is the guide's."""
    return {
        "prompt": pair.prompt.messages,
        "chosen": [Message(role="assistant", content=pair.chosen)],
        "rejected": [Message(role="assistant", content=pair.rejected)],
    }


def sample_pairs(judged: Iterable[JudgedSet], count: int, seed: int) -> list[dict[str, Any]]:
    """A seeded sample of the pairs, for people to read: the rows of `train.jsonl` with the judge's `reasons`.

    A reason speaks of completions by the numbers they were shown as, so each says which numbers the two had.
    """
    made = ((item, pair) for item in judged if isinstance(pair := pair_of(item), Pair))
    chosen = heapq.nsmallest(count, made, key=lambda both: share(both[1].prompt.id, seed, "example"))
    return [pair_row(pair) | {"reasons": [_said(vote, pair) for vote in item.votes]} for item, pair in chosen]


def _said(vote: Verdict, pair: Pair) -> str:
    best, worst = (vote.order.index(place) + 1 for place in (pair.best, pair.worst))
    return f"{vote.model}, shown chosen as {best} and rejected as {worst}: {vote.reason}"


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """The rows of a `train.jsonl` or `val.jsonl`: `{prompt, chosen, rejected}`, each a list of messages.

    Raises:
        FatalError: missing or empty file, or a row that is no pair: a side that is missing, empty, or not one
            assistant message, or both sides equal.
    """
    rows: list[dict[str, Any]] = []
    for number, row in read_jsonl(path):
        where = f"{path}, line {number}"
        prompt = checked_messages(row, "prompt", where)
        sides = [checked_messages(row, side, where) for side in ("chosen", "rejected")]
        if any(len(side) != 1 or side[0]["role"] != "assistant" for side in sides):
            raise FatalError(f"{where}: chosen and rejected must each be one assistant message")
        if sides[0] == sides[1]:
            raise FatalError(f"{where}: chosen and rejected are equal; take the pair out")
        rows.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    if not rows:
        raise FatalError(f"{path}: holds no pairs; give more prompts, or check the stages before training")
    return rows


def read_judged(path: Path) -> Iterator[JudgedSet]:
    """The sets of a `judged.jsonl`: rows `{prompt, completions, truncated, votes, repeats}`, or `failed` with the
    reason in place of `votes`.

    Raises:
        FatalError: the file is missing, or a line is no such row.
    """
    for number, row in read_jsonl(path):
        where = f"{path}, line {number}"
        prompt = Prompt.of(checked_messages(row, "prompt", where))
        texts, cut = checked_completions(row, where)
        try:
            votes, repeats = ([_vote(vote, len(texts)) for vote in row.get(name, [])] for name in ("votes", "repeats"))
            yield JudgedSet(CompletionSet(prompt, texts, cut), votes, row.get("failed"), repeats)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise FatalError(f"{where}: not a set that the judge wrote; judge the completions again") from None


def _vote(row: dict[str, Any], count: int) -> Verdict:
    vote = Verdict(**row)
    vote = replace(vote, order=tuple(vote.order), reason=whole_characters(vote.reason))
    if len(set(vote.order)) != len(vote.order) or not set(vote.order) <= set(range(count)):
        raise ValueError
    if not vote.tie and (vote.best == vote.worst or not {vote.best, vote.worst} <= set(vote.order)):
        raise ValueError
    return vote
