"""Work in several threads, of which Ctrl-C reaches the main one alone."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

SECONDS = 0.2
"""Between two looks whether to stop."""

_ended: ContextVar[threading.Event | None] = ContextVar("ended", default=None)


@contextmanager
def ending_together() -> Iterator[None]:
    """What threads `run` that are given a copy of this context ends with this block."""
    token = _ended.set(ended := threading.Event())
    try:
        yield
    finally:
        ended.set()
        _ended.reset(token)


def run(work: Coroutine[Any, Any, None]) -> None:
    """As asyncio.run, but where the block of `ending_together` ends before the work, that is cancelled. Raises
    CancelledError then."""
    ended = _ended.get()
    asyncio.run(_until(ended, work) if ended else work)


async def _until(ended: threading.Event, work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(work)
    while not task.done():
        if ended.is_set():
            task.cancel()
        await asyncio.wait([task], timeout=SECONDS)
    await task
