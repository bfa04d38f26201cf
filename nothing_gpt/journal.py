"""Unfinished work: the raw replies of a stage, kept as they come, so that a killed stage asks for none of them again.

Rows are kept in segments, each one immutable object written at least once a second. They may come in any order; each
has a key, and a key that is there is never asked for again. A partition holds rows made under the same settings.
"""

import json
import os
import secrets
import threading
import time
from typing import Any, Self

from nothing_gpt.store import Store

FLUSH_SECONDS = 0.5


class Journal:
    """The rows of one partition. A context manager; safe to use from several threads.

    The index in memory holds a key and a position a row; rows themselves stay in the store until they are read.
    """

    def __init__(self, store: Store, partition: str):
        """Opens `journal/<partition>/` and indexes its rows."""
        self._store = store
        self._folder = f"journal/{partition}"
        self._writer = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(3)}"
        self._own: list[str] = []
        self._lock = threading.Lock()
        self._pending: dict[str, bytes] = {}
        self._flushing: dict[str, bytes] = {}
        self._index: dict[str, tuple[str, int, int]] = {}
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
        self._flush()
        self._merge_own_segments()

    def __contains__(self, key: str) -> bool:
        # In the order in which a row moves, so that one that moves meanwhile is not missed.
        return key in self._pending or key in self._flushing or key in self._index

    def __getitem__(self, key: str) -> Any:
        with self._lock:
            line = self._pending.get(key) or self._flushing.get(key)
            if line is None:
                try:
                    line = self._stored(key)
                except FileNotFoundError:  # another run has merged its segments
                    self._index_store()
                    line = self._stored(key)
        return json.loads(line)["row"]

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
        line = json.dumps({"key": key, "row": row}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            if key not in self:
                self._pending[key] = line

    def _flush_regularly(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            try:
                self._flush()
            except BaseException as failure:
                self._failure = failure
                return

    def _flush(self) -> None:
        with self._lock:
            self._flushing, self._pending = self._pending | self._flushing, {}
        if not self._flushing:
            return
        segment = f"{self._folder}/{self._writer}-{len(self._own):06d}.jsonl"
        data = b"".join(self._flushing.values())
        self._store.write(segment, data)
        with self._lock:
            self._own.append(segment)
            _add_segment(self._index, segment, data)
            self._flushing = {}

    def _stored(self, key: str) -> bytes:
        segment, offset, size = self._index[key]
        with self._store.fetch(segment).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def _index_store(self) -> None:
        """Indexes all segments, from the start again where another run merges its own meanwhile."""
        index: dict[str, tuple[str, int, int]] = {}
        for segment in self._store.list(self._folder):
            data = self._store.read(segment)
            if data is None:
                return self._index_store()
            _add_segment(index, segment, data)
        self._index = index

    def _merge_own_segments(self) -> None:
        """One object in place of many small ones. Killed in between, both remain, and the index drops the copies."""
        if len(self._own) < 2:
            return
        merged = f"{self._folder}/{self._writer}-merged.jsonl"
        self._store.write(merged, b"".join(self._store.read(segment) or b"" for segment in self._own))
        for segment in self._own:
            self._store.delete(segment)


def _add_segment(index: dict[str, tuple[str, int, int]], segment: str, data: bytes) -> None:
    offset = 0
    for line in data.splitlines(keepends=True):
        # The key comes first in a line, so the rest need not be parsed to build the index.
        key, _ = json.JSONDecoder().raw_decode(line.decode(), len('{"key": '))
        index.setdefault(key, (segment, offset, len(line)))
        offset += len(line)
