"""The rows that pass between stages, their ids, and the one reader of JSON-lines files.

A row's id is the SHA-256 of its canonical JSON: it outlives file names, order and settings.
"""

import codecs
import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar, overload

from nothing_gpt.errors import FatalError
from nothing_gpt.positions import HASH_BYTES, Positions

ROLES = ("system", "user", "assistant")
_encode = json.JSONEncoder(ensure_ascii=False).encode
_MARK = codecs.BOM_UTF8
_ID_BYTES = 32
_OFFSET_BITS = 44

Row = TypeVar("Row")


class Message(TypedDict):
    """One turn of a conversation in OpenAI's chat format."""

    role: str
    content: str


canonical_json: Callable[[Any], str] = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False
).encode
"""The one JSON text of a value: keys sorted, no spaces, characters as they are."""


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


class Rows(Sequence[Row], Generic[Row]):
    """Rows of JSON-lines files, each with its prompt's id and read when it is looked at: memory holds their places,
    40 bytes a row. The files must not change meanwhile."""

    def __init__(self, paths: Sequence[Path], build: Callable[[str, Any], Row]):
        """`build` makes a row of a prompt's id and the line's value."""
        self._paths = paths
        self._build = build
        self._places = array("Q")
        self._ids = bytearray()

    def ids(self) -> Iterator[str]:
        """The rows' ids, in their order, without reading a row."""
        return (self._ids[start : start + _ID_BYTES].hex() for start in range(0, len(self._ids), _ID_BYTES))

    def note(self, file: int, offset: int, prompt: str) -> None:
        """Adds the row at an offset (bytes) of one of the files."""
        self._places.append(file << _OFFSET_BITS | offset)
        self._ids += bytes.fromhex(prompt)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Row]:
        return self._read(range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        numbers = range(len(self))[index]
        return next(self._read([numbers])) if isinstance(numbers, int) else [*self._read(numbers)]

    def part(self, start: int, stop: int) -> "Rows[Row]":
        """The rows from `start` to before `stop`, read when they are looked at too."""
        rows = Rows(self._paths, self._build)
        rows._places = self._places[start:stop]
        rows._ids = self._ids[start * _ID_BYTES : stop * _ID_BYTES]
        return rows

    def _read(self, numbers: Iterable[int]) -> Iterator[Row]:
        for file, those in groupby(numbers, lambda number: self._places[number] >> _OFFSET_BITS):
            with self._paths[file].open("rb") as lines:
                for number in those:
                    lines.seek(self._places[number] & (1 << _OFFSET_BITS) - 1)
                    identity = self._ids[number * _ID_BYTES : (number + 1) * _ID_BYTES].hex()
                    yield self._build(identity, json.loads(lines.readline().removeprefix(_MARK).decode()))


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each non-blank line.

    Raises:
        FatalError: the file is missing or unreadable, or a line is not JSON in UTF-8.
    """
    return ((number, value) for number, _, value in _lines(path))


def _lines(path: Path) -> Iterator[tuple[int, int, Any]]:
    """(line number, its offset in bytes, value) of each non-blank line; raises as `read_jsonl`."""
    number = offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield number, offset, json.loads(line.removeprefix(_MARK).decode())
                offset += len(line)
    except OSError as error:
        raise FatalError(f"{path}: cannot read it ({error.strerror}); check the path") from None
    except (ValueError, RecursionError):
        raise FatalError(f"{path}, line {number}: not JSON; each line must be one JSON object") from None


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Writes one row a line and returns how many. The bytes follow from the rows alone."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(_encode(row) + "\n")
            count += 1
    return count


def read_prompts(*paths: Path) -> tuple[Rows[Prompt], int]:
    """The distinct prompts of files of `{"prompt": [{role, content}, ...]}` rows, in their order, and how many were
    duplicates.

    Raises:
        FatalError: missing or empty file, a line that is not JSON or holds no valid prompt.
    """
    prompts = Rows(paths, lambda identity, row: Prompt(identity, _messages(row["prompt"])))
    seen = Positions()
    duplicates = 0
    for number, path in enumerate(paths):
        before = len(prompts) + duplicates
        for line, offset, row in _lines(path):
            identity = digest(checked_messages(row, "prompt", f"{path}, line {line}"))
            if (short := bytes.fromhex(identity[: 2 * HASH_BYTES])) in seen:
                duplicates += 1
                continue
            seen.add(short, len(prompts))
            prompts.note(number, offset, identity)
        if len(prompts) + duplicates == before:
            raise FatalError(f'{path}: holds no prompts; each line must be {{"prompt": [{{role, content}}, ...]}}')
    return prompts, duplicates


def read_sets(path: Path) -> Rows[CompletionSet]:
    """The sets of a `completions.jsonl`: rows `{prompt, completions}`, and `truncated` where it is known. A text that
    is there twice is one completion, whole if it was whole once.

    Raises:
        FatalError: missing or empty file, or a line that is no such row.
    """

    def build(identity: str, row: Any) -> CompletionSet:
        cut: dict[str, bool] = {}
        for text, truncated in zip(*checked_completions(row, str(path)), strict=True):
            cut[text] = cut.get(text, True) and truncated
        return CompletionSet(Prompt(identity, _messages(row["prompt"])), [*cut], [*cut.values()])

    sets = Rows([path], build)
    for number, offset, row in _lines(path):
        where = f"{path}, line {number}"
        identity = digest(checked_messages(row, "prompt", where))
        checked_completions(row, where)
        sets.note(0, offset, identity)
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
    return _messages(messages)


def checked_completions(row: dict[str, Any], where: str) -> tuple[list[str], list[bool]]:
    """A row's `completions`, and of each whether the token limit cut it: `truncated`, none where that is not known.
    Raises FatalError, naming `where`, for anything else."""
    texts, cut = row.get("completions"), row.get("truncated")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise FatalError(f'{where}: no "completions"; expected a list of texts')
    if any(text != whole_characters(text) for text in texts):
        raise FatalError(f"{where}: half a character (a lone surrogate) in a completion; correct the text")
    cut = [False] * len(texts) if cut is None else cut
    if not isinstance(cut, list) or len(cut) != len(texts) or not all(isinstance(value, bool) for value in cut):
        raise FatalError(f'{where}: "truncated" must be a list with true or false for each completion, or be left out')
    return texts, cut


def _messages(messages: Any) -> list[Message]:
    return [Message(role=message["role"], content=message["content"]) for message in messages]
