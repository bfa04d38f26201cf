"""Finding and killing all that a command started, wherever it ended up in the process tree."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "NOTHING_GPT_TEST_RUN"
REPOSITORY = Path(__file__).parents[2]


class Command:
    """`nothing-gpt` with arguments, running; all that it starts inherits a mark in its environment."""

    entry = "from flows.cli import main; main()"

    def __init__(self, *arguments: str, log: Path):
        self.mark = uuid.uuid4().hex
        self.log = log
        self._groups: set[int] = set()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.entry, *arguments],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=REPOSITORY, process_group=0,
                env=os.environ | {MARK: self.mark, "PYTHONPATH": str(REPOSITORY)})  # fmt: skip

    def wait(self, timeout_s: float = 600) -> int:
        """The exit code; what it printed is in the log."""
        return self.process.wait(timeout_s)

    def finish(self, timeout_s: float = 600) -> str:
        """What it printed, once it has ended well and left no process."""
        assert self.wait(timeout_s) == 0, self.output
        assert self.alive() == []
        return self.output

    def until(self, reached: str | Callable[[], object], timeout_s: float = 300) -> None:
        """Waits until `reached` says so, or is in the output."""
        deadline = time.monotonic() + timeout_s
        while not (reached in self.output if isinstance(reached, str) else reached()):
            assert self.process.poll() is None, f"it ended too soon:\n{self.output}"
            assert time.monotonic() < deadline, f"never reached:\n{self.output}"
            time.sleep(0.05)

    def kill_everything_when(self, reached: Callable[[], bool], timeout_s: float = 300) -> None:
        """SIGKILL to every process of the command at once, as soon as `reached` says so."""
        self.until(reached, timeout_s)
        for pid in self.alive():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()

    def alive(self) -> list[int]:
        """Ids of all living processes of the command: those that bear its mark, and those of a process group in which
        one bore it, as vLLM's engine writes its title over its environment."""
        groups: dict[int, int] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE:
                    groups[process.pid] = os.getpgid(process.pid)
                if process.environ().get(MARK) == self.mark:
                    self._groups.add(groups[process.pid])
        return [pid for pid, group in groups.items() if group in self._groups]

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")
