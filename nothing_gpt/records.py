"""The rows that pass between stages, their ids, and the one reader of JSON-lines files.

A row's id is the SHA-256 of its canonical JSON: it outlives file names, order and settings.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from nothing_gpt.errors import FatalError

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a conversation in OpenAI's chat format."""

    role: str
    content: str


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, characters as they are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes. Raises FatalError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FatalError(f"{path}: cannot read it ({error.strerror}); check the path") from None


def whole_characters(text: str) -> str:
    """The text with `?` for each half of a character (a lone surrogate), which JSON may hold and no file can."""
    return text.encode(errors="replace").decode()


def share(identity: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that follows from an id and a seed alone, so that a row's side of a split never depends on
    the other rows. `purpose` keeps two splits independent of each other."""
    return int(hashlib.sha256(f"{purpose}:{seed}:{identity}".encode()).hexdigest()[:13], 16) / 16**13


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation to be continued, and its id."""

    id: str
    messages: list[Message]

    @classmethod
    def of(cls, messages: list[Message]) -> "Prompt":
        return cls(digest(messages), messages)


@dataclass(frozen=True, slots=True)
class CompletionSet:
    """The distinct completions of one prompt. `truncated[i]` says that the token limit cut the i-th."""

    prompt: Prompt
    completions: list[str]
    truncated: list[bool]


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each non-blank line.

    Raises:
        FatalError: the file is missing or unreadable, or a line is not JSON in UTF-8.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, json.loads(line)
    except OSError as error:
        raise FatalError(f"{path}: cannot read it ({error.strerror}); check the path") from None
    except (ValueError, RecursionError):
        raise FatalError(f"{path}, line {number}: not JSON; each line must be one JSON object") from None


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Writes one row a line and returns how many. The bytes follow from the rows alone."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_prompts(path: Path) -> tuple[list[Prompt], int]:
    """The distinct prompts of a file of `{"prompt": [{role, content}, ...]}` rows, and how many were duplicates.

    Raises:
        FatalError: missing or empty file, a line that is not JSON or holds no valid prompt.
    """
    prompts: dict[str, Prompt] = {}
    rows = 0
    for number, row in read_jsonl(path):
        rows += 1
        prompt = Prompt.of(checked_messages(row, "prompt", f"{path}, line {number}"))
        prompts.setdefault(prompt.id, prompt)
    if not prompts:
        raise FatalError(f'{path}: holds no prompts; each line must be {{"prompt": [{{role, content}}, ...]}}')
    return list(prompts.values()), rows - len(prompts)


def read_sets(path: Path) -> list[CompletionSet]:
    """The sets of a `completions.jsonl`: rows `{prompt, completions}`, and `truncated` where it is known.

    Raises:
        FatalError: missing or empty file, or a line that is no such row.
    """
    sets: list[CompletionSet] = []
    for number, row in read_jsonl(path):
        where = f"{path}, line {number}"
        messages = checked_messages(row, "prompt", where)
        completions = row.get("completions")
        if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
            raise FatalError(f'{where}: no "completions"; expected a list of texts')
        sets.append(CompletionSet(Prompt.of(messages), completions, row.get("truncated") or [False] * len(completions)))
    if not sets:
        raise FatalError(f"{path}: holds no completions; run the stage before this one")
    return sets


def checked_messages(row: Any, field: str, where: str) -> list[Message]:
    """The conversation in one field of a row. Raises FatalError, naming `where`, for anything else."""
    messages = row.get(field) if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise FatalError(f'{where}: no "{field}"; expected a list of {{role, content}} messages')
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise FatalError(f'{where}: unknown role {role!r} in "{field}"; use one of {", ".join(ROLES)}')
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise FatalError(f'{where}: an empty {message["role"]} message in "{field}"; give it text or take it out')
        if message["content"] != whole_characters(message["content"]):
            raise FatalError(f"{where}: half a character (a lone surrogate) in a message; correct the text")
    return [Message(role=message["role"], content=message["content"]) for message in messages]
