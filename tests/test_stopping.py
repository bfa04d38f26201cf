"""Work in threads ends with the block that had it done."""

import asyncio
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextvars import copy_context

import pytest

from nothing_gpt.stopping import ending_together, run


async def waits_for_ever(began: threading.Event) -> None:
    began.set()
    await asyncio.Event().wait()


def test_work_that_is_left_is_cancelled() -> None:
    began = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        with ending_together():
            work = thread.submit(copy_context().run, lambda: run(waits_for_ever(began)))
            assert began.wait(60)
        with pytest.raises((CancelledError, asyncio.CancelledError)):
            work.result(60)


def test_work_that_ends_before_gives_its_error() -> None:
    async def fails() -> None:
        raise ValueError("its own")

    with ending_together(), pytest.raises(ValueError, match="its own"):
        run(fails())
    with pytest.raises(ValueError, match="its own"):
        run(fails())
