"""Where rows are, by the hash of their keys: a hash table in three arrays, 35 to 70 bytes a row.

A dict takes 150, as each of its hashes and positions is an object. Linear probing, Knuth, The Art of Computer
Programming, volume 3, section 6.4, algorithm L; the hashes are random already.
"""

from array import array
from collections.abc import Iterator
from struct import Struct

HASH_BYTES = 16
_halves = Struct("<QQ").unpack
_FEWEST = 1 << 10
_GONE = (1 << 64) - 1

_Table = tuple["array[int]", "array[int]", "array[int]"]


class Positions:
    """Positions, below 2^63, by hashes of `HASH_BYTES` bytes. One thread may write while others read."""

    def __init__(self) -> None:
        self._table = _empty(_FEWEST)
        self._used = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, hashed: bytes) -> bool:
        return self.get(hashed) is not None

    def get(self, hashed: bytes) -> int | None:
        """The position, or None where there is none."""
        table = self._table
        marked = table[2][_slot(table, *_halves(hashed))]
        return marked - 1 if 0 < marked < _GONE else None

    def add(self, hashed: bytes, position: int) -> None:
        """Notes a position; one that is noted already stays."""
        if 3 * (self._used + 1) > 2 * len(self._table[2]):
            self._grow()
        low, high = _halves(hashed)
        lows, highs, marks = self._table
        slot = _slot(self._table, low, high)
        if marks[slot] in (0, _GONE):
            self._used += marks[slot] == 0
            self._count += 1
            lows[slot], highs[slot] = low, high
            marks[slot] = position + 1  # last: a reader takes the slot for empty until then

    def discard(self, hashed: bytes) -> None:
        """Forgets a position, if it is noted."""
        slot = _slot(self._table, *_halves(hashed))
        if 0 < self._table[2][slot] < _GONE:
            self._table[2][slot] = _GONE  # not 0: those that were put behind it must be found
            self._count -= 1

    def _grow(self) -> None:
        table = _empty(2 * len(self._table[2]))
        for low, high, mark in _entries(self._table):
            slot = _slot(table, low, high)
            table[0][slot], table[1][slot], table[2][slot] = low, high, mark
        self._table, self._used = table, self._count


def _empty(slots: int) -> _Table:
    return array("Q", bytes(8 * slots)), array("Q", bytes(8 * slots)), array("Q", bytes(8 * slots))


def _entries(table: _Table) -> Iterator[tuple[int, int, int]]:
    return ((low, high, mark) for low, high, mark in zip(*table, strict=True) if 0 < mark < _GONE)


def _slot(table: _Table, low: int, high: int) -> int:
    """Where a hash is, or is to be put."""
    lows, highs, marks = table
    last = len(marks) - 1
    slot = low & last
    while marks[slot] and (lows[slot] != low or highs[slot] != high):
        slot = slot + 1 & last
    return slot
