"""What can go wrong, as three kinds: a fault that passes, one bad row, and a stop that a person must act on.

Every message is one line that says what, where, and what to do; the command line prints it without a traceback.
Each kind knows the exit code a process ends with.
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class NothingGPTError(Exception):
    """Base of all errors a user can cause or meet. Anything else that is raised is a bug and keeps its traceback."""

    exit_code = 1


class TransientError(NothingGPTError):
    """Passes by itself: a timeout, a reset, an overloaded server, a preempted job. Trying again is right.

    Exit code 75 is sysexits.h's EX_TEMPFAIL.
    """

    exit_code = 75


class BadRowError(NothingGPTError):
    """A reply that no retry mends. It concerns one row only, which is set aside with this reason."""

    def __init__(self, reason: str, status: int | None = None, attempts: int = 1):
        """`status` is the last reply's HTTP status where it had one; `attempts` is how often the row was asked for."""
        super().__init__(reason)
        self.status = status
        self.attempts = attempts


class FatalError(NothingGPTError):
    """Stops the stage at once: a wrong key, an unknown model, bad settings, a full disk. What is finished stays."""


class SpendingLimitError(FatalError):
    """The next call might exceed what may be spent."""


class Killed(FatalError):
    """A process of ours ended by SIGKILL, of which it could say nothing itself: mostly, memory ran out."""


class GateFailed(FatalError):
    """The candidate is not measurably better, so nothing is promoted; the message lists the reasons."""

    exit_code = 3


def exits_cleanly(main: Callable[[], None]) -> Callable[[], NoReturn]:
    """A program's entry: errors a user can cause become one line on stderr and the kind's exit code."""

    @functools.wraps(main)
    def program() -> NoReturn:
        try:
            main()
        except NothingGPTError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            print("interrupted; what is finished is kept; run again to go on", file=sys.stderr)
            sys.exit(130)
        sys.exit(0)

    return program


def stop_at_once(*_: Any) -> NoReturn:
    """Answers SIGTERM where there is nothing to save. No exception: a library may catch it, and the work would go on
    on a machine that is being taken away."""
    os.write(2, b"error: asked to stop; run again to go on\n")
    os._exit(TransientError.exit_code)
