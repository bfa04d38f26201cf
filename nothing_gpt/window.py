"""How many sequences may be in flight: additive increase, multiplicative decrease. It knows no endpoint."""

import asyncio
import math
import time
from collections import deque


class Window:
    """How many sequences may be in flight: additive increase, multiplicative decrease, between 1 and `most`.

    Whoever has waited longest is let in first, but before all a request that is tried again.
    """

    def __init__(self, most: int):
        self.most = most
        self.limit = float(most)
        self._used = 0
        self._waiting = deque[tuple[int, asyncio.Future[None]]]()
        self._shrunk = -math.inf

    async def acquire(self, sequences: int, again: bool = False) -> None:
        place = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if again else self._waiting.append)((sequences, place))
        self._admit()
        await place

    def release(self, sequences: int) -> None:
        self._used -= sequences
        self._admit()

    def _admit(self) -> None:
        while self._waiting and (self._used == 0 or self._used + self._waiting[0][0] <= self.limit):
            sequences, place = self._waiting.popleft()
            if not place.done():  # or whoever waited was cancelled
                self._used += sequences
                place.set_result(None)

    def grow(self, sequences: int) -> None:
        """Widens it for so many sequences that came: by one when all that may be in flight have come."""
        self.limit = min(self.most, self.limit + sequences / self.limit)

    def resize(self, most: int) -> None:
        """Moves its bound, and in proportion what may be in flight now."""
        self.limit = max(1.0, self.limit * most / self.most)
        self.most = most

    def shrink(self) -> None:
        """Halves the window, at most once a second: the refusals of one burst are one signal."""
        if time.monotonic() - self._shrunk > 1:
            self._shrunk = time.monotonic()
            self.limit = max(1.0, self.limit / 2)
