"""Unfinished work: the raw replies of a stage, kept as they come, so that a killed stage asks for none of them again.

Rows are kept in segments, each one immutable object written at least once a second. They may come in any order; each
has a key, and a key that is there is never asked for again. A partition holds rows made under the same settings.
What a row means is not known here.
"""

import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from nothing_gpt.artifacts import lease
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.positions import HASH_BYTES, Positions
from nothing_gpt.store import Store

FLUSH_SECONDS = 0.5
MERGED_BYTES = 64 * 2**20
"""A segment of this size is not merged again: a run that adds little does not copy all that is there."""
REQUESTS = 8
"""Segments that are fetched or deleted at once: in a bucket each is a matter of waiting."""

_START, _MIDDLE, _END = b'{"key": ', b', "row": ', b"}\n"
_OFFSET_BITS = 44
_encode = json.JSONEncoder(ensure_ascii=False).encode


class Journal:
    """The rows of one partition. A context manager; safe to use from several threads.

    A row costs about 30 bytes of memory, whatever its size: the index holds a hash of its key and its position, and
    the row stays in the store until it is read.
    """

    def __init__(self, store: Store, partition: str, shard: int | None = None):
        """Opens `journal/<partition>/` and indexes its rows. `shard`: as one of several writers that ask for different
        rows at once, on behalf of one that holds the partition meanwhile and merges their segments afterwards."""
        self._store = store
        self._partition = partition
        self._shard = shard
        self._folder = f"journal/{partition}"
        self._writer = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(3)}"
        self._written = 0
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._pending: dict[bytes, bytes] = {}
        self._flushing: dict[bytes, bytes] = {}
        self._segments: list[str] = []
        self._files: dict[str, Path] = {}
        self._index = Positions()
        self._open: tuple[int, BinaryIO] | None = None
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        self._index_store()
        self._flusher = threading.Thread(target=self._flush_regularly, daemon=True, name="journal")

    def __enter__(self) -> Self:
        self._flusher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._flusher.join()
        try:
            self._flush()
            # No room for a copy, a store out of reach, another run that merges too: a later run merges what is written.
            with suppress(FatalError, TransientError, FileNotFoundError):
                if self._shard is None:
                    self._merge()
        finally:
            self._close_segment()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the partition, or the shard, while its missing rows are asked for, so that no reply is paid for twice:
        of two runs that want the same rows the second waits, and then finds them here."""
        name = self._partition.replace("/", "-") + ("" if self._shard is None else f"-{self._shard}")
        with lease(self._store, f"leases/{name}"):
            self.refresh()
            try:
                yield
            finally:
                self._flush()

    def refresh(self) -> None:
        """Finds what others have written to the store meanwhile."""
        with self._lock:
            self._refresh()

    def __contains__(self, key: str) -> bool:
        hashed = _hash(_encode(key).encode())
        # In the order in which a row moves, so that one that moves meanwhile is not missed.
        return hashed in self._pending or hashed in self._flushing or hashed in self._index

    def __getitem__(self, key: str) -> Any:
        row = self.get(key, self)
        if row is self:
            raise KeyError(key)
        return row

    def get(self, key: str, default: Any = None) -> Any:
        """The key's row, or the default where there is none or only a damaged one, which is then forgotten."""
        hashed = _hash(_encode(key).encode())
        with self._lock:
            line = self._pending.get(hashed) or self._flushing.get(hashed) or self._stored(hashed)
        if line is None:
            return default
        try:
            return json.loads(line.decode())["row"]
        except ValueError:
            self._index.discard(hashed)
            return default

    def __len__(self) -> int:
        return len(self._index) + len(self._pending) + len(self._flushing)

    def add(self, key: str, row: Any) -> None:
        """Keeps a row; it is on the disk within a second. The first row of a key stays.

        Raises:
            FatalError: an earlier row could not be written (a full or read-only disk).
            UnicodeEncodeError: the row holds half a character (a lone surrogate), which no file can.
        """
        if self._failure:
            raise self._failure
        encoded = _encode(key).encode()
        line = b"".join((_START, encoded, _MIDDLE, _encode(row).encode(), _END))
        hashed = _hash(encoded)
        with self._lock:
            if not (hashed in self._pending or hashed in self._flushing or hashed in self._index):
                self._pending[hashed] = line

    def _flush_regularly(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            try:
                self._flush()
            except BaseException as failure:
                self._failure = failure
                return

    def _flush(self) -> None:
        with self._writing:  # one at a time: the flusher may be at it when `alone` ends
            with self._lock:
                self._flushing, self._pending = self._flushing | self._pending, {}
            if not self._flushing:
                return
            segment = self._write(self._flushing.values())
            with self._lock:
                _index_lines(self._index, len(self._segments), self._flushing.items())
                self._segments.append(segment)
                self._flushing = {}

    def _write(self, lines: Iterable[bytes]) -> str:
        """A new segment of these lines."""
        segment = f"{self._folder}/{self._writer}-{self._written:06d}.jsonl"
        self._store.stream(segment, lines)
        self._written += 1
        return segment

    def _stored(self, hashed: bytes) -> bytes | None:
        position = self._index.get(hashed)
        if position is None:
            return None
        try:
            file = self._segment(position >> _OFFSET_BITS)
        except FileNotFoundError:  # another run has merged its segments, or somebody has emptied the cache
            self._index_store()
            return self._stored(hashed)
        file.seek(position & (1 << _OFFSET_BITS) - 1)
        return file.readline()

    def _segment(self, number: int) -> BinaryIO:
        """The segment's file. The last one used stays open: rows that came together are read together."""
        if self._open is None or self._open[0] != number:
            self._close_segment()
            self._open = number, self._file(self._segments[number]).open("rb")
        return self._open[1]

    def _file(self, segment: str) -> Path:
        """A segment on this machine. It never changes, so the store is asked once."""
        if segment not in self._files:
            self._files[segment] = self._store.fetch(segment)
        return self._files[segment]

    def _close_segment(self) -> None:
        if self._open:
            self._open[1].close()
            self._open = None

    def _index_store(self) -> None:
        """Indexes all segments, from the start again where another run merges its own meanwhile."""
        self._close_segment()
        while True:
            index = Positions()
            segments = [*self._store.list(self._folder)]
            self._files.clear()
            try:
                with ThreadPoolExecutor(REQUESTS) as requests:
                    for number, file in enumerate(requests.map(self._file, segments)):
                        _index_lines(index, number, _lines(file))
            except FileNotFoundError:
                continue
            self._segments, self._index = segments, index
            return

    def _refresh(self) -> None:
        """Indexes the store anew where another run has written to it."""
        if [*self._store.list(self._folder)] != sorted(self._segments):
            self._index_store()

    def _merge(self) -> None:
        """One object in place of many small ones. Killed in between, both remain, and the index drops the copies."""
        self._refresh()
        with ThreadPoolExecutor(REQUESTS) as requests:
            files = [*requests.map(self._file, self._segments)]
            small = [number for number, file in enumerate(files) if file.stat().st_size < MERGED_BYTES]
            if len(small) < 2:
                return
            self._write(self._indexed_lines(small))
            for _ in requests.map(self._store.delete, (self._segments[number] for number in small)):
                pass

    def _indexed_lines(self, segments: Iterable[int]) -> Iterator[bytes]:
        """The lines that the index points to: no copies, nothing torn."""
        for number in segments:
            position = number << _OFFSET_BITS
            for hashed, line in _lines(self._file(self._segments[number])):
                if hashed and self._index.get(hashed) == position:
                    yield line
                position += len(line)


def _hash(encoded_key: bytes) -> bytes:
    return hashlib.blake2b(encoded_key, digest_size=HASH_BYTES).digest()


def _lines(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """(hash of its key, line) of each line; an empty hash for a line that is torn or not ours."""
    with path.open("rb") as file:
        for line in file:
            # The row need not be parsed for its key, and an unescaped quote is the key's end.
            end = line.find(_MIDDLE) if line.startswith(_START) and line.endswith(_END) else -1
            yield _hash(line[len(_START) : end]) if end > 0 else b"", line


def _index_lines(index: Positions, segment: int, lines: Iterable[tuple[bytes, bytes]]) -> None:
    """Notes where each line of a segment is. A key that is there already keeps its row."""
    position = segment << _OFFSET_BITS
    for hashed, line in lines:
        if hashed:
            index.add(hashed, position)
        position += len(line)
