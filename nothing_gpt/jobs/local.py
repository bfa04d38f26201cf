"""Training on this machine: one of our modules as a child process, its progress shown here, its errors one line."""

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nothing_gpt.errors import FatalError, Killed, TransientError
from nothing_gpt.processes import QUIET, Child
from nothing_gpt.progress import CHILD, Relay


def run_module(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Runs one of our modules as a process of its own, which ends when we do; everything it prints is in `log`.

    Raises:
        TransientError: it asks to be run again (exit code 75).
        Killed: it was ended by SIGKILL, as the kernel does where memory runs out.
        FatalError: it failed; the message is its own last line.
    """
    command = [sys.executable, "-m", module, *arguments]
    variables = {**QUIET, CHILD: "1", "PYTHONUNBUFFERED": "1", **environment}
    with Relay() as relay, Child(command, log, env=variables) as child:
        code = child.wait(on_line=relay)
        last = next((line for line in reversed(child.tail(20)) if line.startswith("error: ")), None)
    if code == TransientError.exit_code:
        raise TransientError(f"{module} was interrupted and saved a checkpoint; run again to go on")
    if code == 128 + signal.SIGKILL:
        raise Killed(f"{module} was killed (SIGKILL; its log is {log}): memory may have run out")
    if code != 0:
        reason = last.removeprefix("error: ") if last else f"ended with exit code {code}"
        raise FatalError(f"{module}: {reason}" + ("" if last else f"; its log is {log}"))
