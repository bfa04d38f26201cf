"""Preference pairs: which completion is chosen and which rejected, on which side of the split, or why neither.

Pure functions of judged sets. A prompt's side follows from its id and the seed alone, so that it never changes sides
when other prompts are added.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nothing_gpt.errors import FatalError
from nothing_gpt.records import CompletionSet, Message, Prompt, checked_messages, read_jsonl, share
from nothing_gpt.verdicts import Ranking, Verdict, consensus


@dataclass(frozen=True)
class Pair:
    """A chosen and a rejected completion of one prompt, as texts."""

    prompt: Prompt
    chosen: str
    rejected: str


@dataclass(frozen=True)
class JudgedSet:
    """A set of completions and its votes, or the reason why it has none."""

    item: CompletionSet
    votes: list[Verdict]
    failed: str | None = None


@dataclass
class Pairs:
    """The pairs to train on and to validate, in the order of their prompts; dropped sets counted by reason."""

    train: list[Pair] = field(default_factory=list)
    val: list[Pair] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)


def make_pairs(judged: Iterable[JudgedSet], val_ratio: float, seed: int) -> Pairs:
    """Best and worst of every set whose votes agree. The validation side varies about `val_ratio`, which is a
    threshold on a hash and no count."""
    pairs = Pairs()
    for item in judged:
        ranking = consensus(item.votes) if item.failed is None else "not judged"
        if not isinstance(ranking, Ranking):
            pairs.drops[ranking] += 1
            continue
        prompt, texts = item.item.prompt, item.item.completions
        side = pairs.val if share(prompt.id, seed, "val") < val_ratio else pairs.train
        side.append(Pair(prompt, texts[ranking.best], texts[ranking.worst]))
    return pairs


def pair_row(pair: Pair) -> dict[str, Any]:
    """A pair in TRL's conversational DPO format, which is the guide's."""
    return {
        "prompt": pair.prompt.messages,
        "chosen": [Message(role="assistant", content=pair.chosen)],
        "rejected": [Message(role="assistant", content=pair.rejected)],
    }


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
    """The rows of a `judged.jsonl` that the judging stage wrote."""
    for _, row in read_jsonl(path):
        item = CompletionSet(Prompt.of(row["prompt"]), row["completions"], row["truncated"])
        votes = [Verdict(**(vote | {"order": tuple(vote["order"])})) for vote in row.get("votes", [])]
        yield JudgedSet(item, votes, row.get("failed"))
