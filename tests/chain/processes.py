"""Finding and killing all that a command started, wherever it ended up in the process tree."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

MARK = "NOTHING_GPT_TEST_RUN"
REPOSITORY = Path(__file__).parents[2]


class Command:
    """`nothing-gpt` with arguments, running; all that it starts inherits a mark in its environment."""

    entry = "from flows.cli import main; main()"

    def __init__(self, *arguments: str, log: Path):
        self.mark = uuid.uuid4().hex
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.entry, *arguments],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=REPOSITORY,
                env=os.environ | {MARK: self.mark, "PYTHONPATH": str(REPOSITORY)})  # fmt: skip

    def wait(self, timeout_s: float = 600) -> int:
        """The exit code; what it printed is in the log."""
        return self.process.wait(timeout_s)

    def kill_everything_when(self, reached: Callable[[], bool], timeout_s: float = 300) -> None:
        """SIGKILL to every process of the command at once, as soon as `reached` says so."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert self.process.poll() is None, f"it ended before it could be killed:\n{self.output}"
            assert time.monotonic() < deadline, f"never reached:\n{self.output}"
            time.sleep(0.05)
        for pid in self.alive():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()

    def alive(self) -> list[int]:
        """Ids of all living processes of the command."""
        marked = f"{MARK}={self.mark}".encode()
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if marked in environment.read_bytes().split(b"\0"):
                    found.append(int(environment.parent.name))
            except OSError:
                continue
        return found

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")
