"""Where rows are, by the hash of their keys: a table of SQLite's in memory, 30 bytes a row.

A million rows on one core (memory; microseconds to note a row, to find one, to find that it is not there):

    SQLite in memory                 29 MiB   3.8   3.1   3.0
    a dict of bytes                 132 MiB   0.5   0.4   0.4
    a dict of 8 of the bytes        117 MiB   0.7   0.7   0.6

A stage looks a row up two or three times and computes 240 microseconds for it. With the dict a million rows would take
more than the 200 MiB that they may (docs/scaling.md).
"""

import sqlite3

HASH_BYTES = 16


class Positions:
    """Positions, below 2^63, by hashes of `HASH_BYTES` bytes. Safe to use from several threads, as SQLite is."""

    def __init__(self) -> None:
        self._table = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._table.execute("CREATE TABLE positions (hash BLOB PRIMARY KEY, position INTEGER) WITHOUT ROWID")

    def __len__(self) -> int:
        return self._table.execute("SELECT count(*) FROM positions").fetchone()[0]

    def __contains__(self, hashed: bytes) -> bool:
        return self.get(hashed) is not None

    def get(self, hashed: bytes) -> int | None:
        """The position, or None where there is none."""
        found = self._table.execute("SELECT position FROM positions WHERE hash = ?", (hashed,)).fetchone()
        return found and found[0]

    def add(self, hashed: bytes, position: int) -> None:
        """Notes a position; one that is noted already stays."""
        self._table.execute("INSERT OR IGNORE INTO positions VALUES (?, ?)", (hashed, position))

    def discard(self, hashed: bytes) -> None:
        """Forgets a position, if it is noted."""
        self._table.execute("DELETE FROM positions WHERE hash = ?", (hashed,))
