"""What the doctor looks at: one finding a check, and a time limit on each."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import TypeVar

from nothing_gpt.errors import TransientError

LIMIT_S = 20.0
"""A run is patient with what does not answer; a person who asks what is wrong is not."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is well, and otherwise what it prevents and what to do."""

    what: str
    ok: bool
    remedy: str = ""


def within_limit(look: Callable[[], Result]) -> Result:
    """What `look` returns or raises.

    Raises:
        TransientError: it took longer than 20 s. It is left behind, in a thread that may end with the program.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(look())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if not wait_for([future], LIMIT_S).done:
        raise TransientError(
            f"no answer within {LIMIT_S:.0f} s; run again, or look whether it can be reached from here"
        )
    return future.result()
