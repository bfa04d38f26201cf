"""Child processes that never outlive us: each runs on a *leash*, a tiny process between it and us.

The leash holds a socket to us; end of file there means that we died, even by SIGKILL, and it ends the child's
process group. If the leash itself is killed, the kernel kills the child (PR_SET_PDEATHSIG; it is tied to the
*thread* that started the child, so it takes a single-threaded process like the leash) and we kill the rest of
the group. Not covered: a grandchild that leaves the group by starting a session of its own. Linux only.
"""

import contextlib
import ctypes
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Self

GRACE_S = 25
"""From SIGTERM to SIGKILL: a training saves a checkpoint. A preempted machine has 30 seconds."""
PR_SET_PDEATHSIG = 1

Run = Callable[[str, Sequence[str], Mapping[str, str], Path], None]
"""Runs one of our modules, `python -m name arguments`, with an environment added and its output in a log, wherever that
is; `jobs` has the ways."""

QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Environment in which the libraries that train leave the talking to us."""


class Child:
    """One running command, its output in `log`; leaving the `with` block ends it and everything it started.

    `env` is added to our own environment. A log is appended to; `tail` and `wait` see only new lines.
    Raises OSError if the command cannot be started.
    """

    def __init__(
        self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._ours, theirs = socket.socketpair()
        with theirs, log.open("ab") as out:
            self._log_start = out.tell()
            # Isolated and without site-packages, the leash starts fast and in any `cwd`.
            self._leash = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, "--", *command],
                stdin=theirs.fileno(), stdout=out, stderr=out, cwd=cwd, env={**os.environ, **(env or {})},
                start_new_session=True,
            )  # fmt: skip
        self.pid = int(self._ours.recv(32) or 0)
        if not self.pid:
            self._leash.wait()
            self._ours.close()
            raise OSError(f"cannot start {shlex.join(command)}: {' '.join(self.tail(1))}")
        self._watcher = threading.Thread(target=self._bury, name=f"leash-{self.pid}", daemon=True)
        self._watcher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _bury(self) -> None:
        """Wait for the leash; if it was killed, end what the kernel did not: the child's own children."""
        if self._leash.wait() < 0:
            _kill_group(self.pid, signal.SIGKILL)

    @property
    def running(self) -> bool:
        return self._leash.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit code, 128 + the number of the signal that ended the child, or None while it runs."""
        return None if (code := self._leash.poll()) is None else _exit_code(code)

    def stop(self, grace: float = GRACE_S) -> int:
        """SIGTERM to the whole group, SIGKILL to what is left after `grace` seconds; the exit code."""
        if self.running:
            self._leash.terminate()
            try:
                self._leash.wait(grace)
            except subprocess.TimeoutExpired:
                _kill_group(self.pid, signal.SIGKILL)
        self._watcher.join()
        self._ours.close()
        return _exit_code(self._leash.wait())

    def wait(self, timeout_s: float | None = None, on_line: Callable[[str], object] | None = None) -> int:
        """The exit code, once the child has ended; `on_line` gets each line of output as it comes.

        Raises TimeoutError, and leaves the child running. What `on_line` raises comes through.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self.log.open("rb") as output:
            output.seek(self._log_start)
            rest = b""
            while True:
                ended = not self.running  # asked before reading, so that the last lines are not missed
                *lines, rest = (rest + output.read()).split(b"\n")
                for line in [*lines, rest] if ended and rest else lines:
                    if on_line:
                        on_line(line.decode(errors="replace"))
                if ended:
                    return self.stop()
                if deadline and time.monotonic() > deadline:
                    raise TimeoutError(f"still running after {timeout_s:g} s; its log is {self.log}")
                time.sleep(0.05)

    def tail(self, n: int = 20) -> list[str]:
        """The last `n` lines of output that are not blank."""
        with self.log.open("rb") as output:
            end = output.seek(0, os.SEEK_END)
            output.seek(max(self._log_start, end - 65536))
            lines = output.read().decode(errors="replace").splitlines()
        return [line for line in lines if line.strip()][-n:]


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when the one that started it, whose id is `parent`, ends. If it did so already
    the kernel would never tell, and we end here."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing uses right now. Another program may take it before you do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _exit_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _kill_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _leash(command: list[str]) -> int:
    """Run `command` in a group of its own until it ends or stdin does; its exit code, as a shell gives it."""
    parent, die_with_leash = socket.socket(fileno=0), partial(die_with_parent, os.getpid())
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=die_with_leash)
    signal.signal(signal.SIGTERM, lambda *_: _kill_group(child.pid, signal.SIGTERM))
    signal.signal(signal.SIGALRM, lambda *_: _kill_group(child.pid, signal.SIGKILL))
    with contextlib.suppress(OSError):  # if the parent is gone already, select sees the end of file
        parent.send(b"%d" % child.pid)
    readable, _, _ = select.select([parent, os.pidfd_open(child.pid)], [], [])
    if parent in readable:
        _kill_group(child.pid, signal.SIGTERM)
        signal.alarm(GRACE_S)
    code = child.wait()
    _kill_group(child.pid, signal.SIGKILL)  # what it left behind
    return _exit_code(code)


if __name__ == "__main__":
    sys.exit(_leash(sys.argv[2:]))
