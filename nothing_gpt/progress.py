"""What a person sees while work goes on: a bar with rate and time left on a terminal, a line now and then elsewhere.

A child process reports to its parent in lines of JSON, which `Relay` shows: training looks the same whether it runs
here or in a job elsewhere.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

CHILD = "NOTHING_GPT_CHILD"
"""Set in the environment of a child process whose lines are relayed."""
LINE_SECONDS = 10.0
RELAY_SECONDS = 0.5

console = Console(stderr=True, highlight=False, soft_wrap=True)


Watch = Callable[[str, int, int | None, str], None]
watcher: ContextVar[Watch | None] = ContextVar("watcher", default=None)
"""Is told `label, done, total, note` at every step too, in the thread of the work: it must not wait."""


class Advance(Protocol):
    """`n` more are done; the note is shown beside them."""

    def __call__(self, n: int = 1, note: str = "") -> None: ...


def hush() -> None:
    """Nothing is shown from now on: of several processes at one work only one talks."""
    console.quiet = True


def say(message: str) -> None:
    """One line to the person."""
    if CHILD in os.environ:
        _tell_parent(say=message)
    else:
        console.print(message, markup=False)


@contextmanager
def progress(label: str, total: int | None = None, done: int = 0) -> Iterator[Advance]:
    """Shows how far a piece of work is: `done` of `total` (None: not known) were finished before it began."""
    if CHILD in os.environ:
        show, close = _to_parent(label, total)
    elif console.is_terminal:
        show, close = _as_bar(label, total, done)
    else:
        show, close = _as_lines(label, total, done)
    finished, watch = done, watcher.get()

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal finished
        finished += n
        show(finished, note)
        if watch:
            watch(label, finished, total, note)

    show(done, "")
    try:
        yield advance
    finally:
        close(finished)


class Relay:
    """Shows a child's progress here: call it with each of the child's lines; it returns whether it took the line."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._shown: dict[str, tuple[Advance, int]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, line: str) -> bool:
        if not line.startswith('{"nothing_gpt": '):
            return False
        try:
            event = json.loads(line)["nothing_gpt"]
        except ValueError:  # the child was killed in mid-line
            return False
        if "say" in event:
            say(event["say"])
            return True
        label, done = event["label"], event["done"]
        if label not in self._shown:
            self._shown[label] = self._stack.enter_context(progress(label, event["total"], done)), done
        advance, before = self._shown[label]
        advance(done - before, event["note"])
        self._shown[label] = advance, done
        return True


Show = Callable[[int, str], None]
Close = Callable[[int], None]


def _as_bar(label: str, total: int | None, done: int) -> tuple[Show, Close]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=console,
    )
    task = bar.add_task(label, total=total, completed=done, note="")
    bar.start()
    return lambda now, note: bar.update(task, completed=now, note=note), lambda _: bar.stop()


def _as_lines(label: str, total: int | None, done: int) -> tuple[Show, Close]:
    started = last = time.monotonic()

    def show(now: int, note: str, closing: bool = False) -> None:
        nonlocal last
        elapsed = time.monotonic() - started
        if not closing and time.monotonic() - last < LINE_SECONDS:
            return
        last = time.monotonic()
        rate = (now - done) / elapsed if elapsed else 0.0
        parts = [f"{label}: {now}" + (f" of {total}" if total is not None else "")]
        if rate:
            parts.append(f"{rate:.3g}/s")
        parts.append(f"{elapsed:.0f} s")
        if total is not None and rate and not closing:
            parts.append(f"{(total - now) / rate:.0f} s left")
        console.print(", ".join([*parts, note] if note else parts), markup=False)

    return show, lambda now: show(now, "", closing=True) if time.monotonic() - started > 2 else None


def _to_parent(label: str, total: int | None) -> tuple[Show, Close]:
    last = 0.0

    def show(now: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last >= RELAY_SECONDS or now == total:
            last = time.monotonic()
            _tell_parent(label=label, total=total, done=now, note=note)

    return show, lambda now: _tell_parent(label=label, total=total, done=now, note="")


def _tell_parent(**event: object) -> None:
    if not console.quiet:
        print(json.dumps({"nothing_gpt": event}), flush=True)
