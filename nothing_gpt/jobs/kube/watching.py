"""What happens to a Job, as one queue of events: it, its pods, and each line of their logs once.

Threads wait on the API server (two watches, and one log at a time), so that whoever takes the events can be interrupted
and keeps his deadlines however long the server hangs. A watch lists anew where it expired or broke off.
"""

import json
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from nothing_gpt.errors import TransientError
from nothing_gpt.jobs.kube.api import EXPIRED, FORBIDDEN, Api, Refused
from nothing_gpt.jobs.kube.objects import CONTAINER, JobState, PodState

WATCH_S = 30
"""The server ends a watch after this time, which shows that it is there."""
QUIET_S = 45.0
"""A connection on which nothing comes for so long is given up. A log may be quiet: it is asked for anew."""
PAUSE_S = 1.0
"""Least time from one request of a watch or a log to its next, and how the waits between tries begin."""
LONGEST_PAUSE_S = 10.0
LOST_LOG_TRIES = 5
"""An ended pod's log that cannot be had so often is lost with its node."""

GONE = 410
"""Status of a watch that goes too far back."""


@dataclass(frozen=True)
class Seen:
    """The Job (None: there is none) or its pods, oldest first, as they are now."""

    job: JobState | None = None
    pods: tuple[PodState, ...] | None = None


@dataclass(frozen=True)
class Silent:
    """The API server did not answer."""

    error: str


@dataclass(frozen=True)
class Line:
    text: str


@dataclass(frozen=True)
class LogEnded:
    """All of the pod's lines have come, or all that can be had: then `lost` says why."""

    lost: str | None = None


Event = Seen | Silent | Line | LogEnded


class Watching:
    """The events of the Job `name` from now on. Leaving the `with` block ends the threads."""

    def __init__(self, api: Api, name: str):
        self._api = api
        self._name = name
        self._events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._jobs())
        self._start(self._pods())
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._api.hang_up()
        for thread in self._threads:
            thread.join(timeout=5)

    def next(self, timeout_s: float) -> Event | None:
        """The next event, or None where there is none in time.

        Raises Refused: the API server does not let us watch.
        """
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(event, BaseException):
            raise event
        return event

    def read_log(self, pod: str) -> None:
        """From now on the pod's lines come too, and in the end a LogEnded."""
        self._start(self._log(pod))

    def _start(self, events: Iterator[Event]) -> None:
        def run() -> None:
            try:
                for event in events:
                    if self._stop.is_set():
                        return
                    self._events.put(event)
            except BaseException as error:
                self._events.put(error)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def _jobs(self) -> Iterator[Event]:
        path = f"/apis/batch/v1/namespaces/{self._api.namespace}/jobs"
        for found in self._changes(path, fieldSelector=f"metadata.name={self._name}"):
            yield found if isinstance(found, Silent) else Seen(job=JobState.read(found[0]) if found else None)

    def _pods(self) -> Iterator[Event]:
        path = f"/api/v1/namespaces/{self._api.namespace}/pods"
        for found in self._changes(path, labelSelector=f"job-name={self._name}"):
            if isinstance(found, Silent):
                yield found
            else:
                yield Seen(pods=tuple(sorted(map(PodState.read, found), key=lambda pod: pod.created)))

    def _changes(self, path: str, **selector: str) -> Iterator[list[dict[str, Any]] | Silent]:
        """All objects after each change; at least every WATCH_S seconds, or Silent."""
        pause = PAUSE_S
        while not self._stop.is_set():
            try:
                listing = self._api.get(path, **selector)
                objects = {item["metadata"]["uid"]: item for item in listing["items"]}
                version = listing["metadata"]["resourceVersion"]
                while True:
                    yield list(objects.values())
                    pause, started = PAUSE_S, time.monotonic()
                    for line in self._api.lines(
                        path,
                        QUIET_S,
                        self._stop,
                        watch=True,
                        resourceVersion=version,
                        timeoutSeconds=WATCH_S,
                        **selector,
                    ):
                        event = json.loads(line)
                        item = event["object"]
                        if event["type"] == "ERROR":
                            raise Refused(item.get("message", "the watch failed"), item.get("code", 500))
                        version = item["metadata"]["resourceVersion"]
                        if event["type"] == "DELETED":
                            objects.pop(item["metadata"]["uid"], None)
                        else:
                            objects[item["metadata"]["uid"]] = item
                        yield list(objects.values())
                    self._stop.wait(started + PAUSE_S - time.monotonic())
                    if self._stop.is_set():
                        return
            except (TransientError, ValueError) as error:  # ValueError: an event broken off in its middle
                yield Silent(str(error))
            except Refused as error:
                if error.status == EXPIRED:
                    yield Silent(str(error))
                elif error.status != GONE and error.status < 500:
                    raise
            self._stop.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    def _log(self, pod: str) -> Iterator[Event]:
        lost = None
        try:
            for line in log_lines(self._api, pod, self._stop):
                if line is None:
                    lost = f"the rest of pod {pod}'s log is gone with its node"
                else:
                    yield Line(line)
        except Refused as error:
            if error.status != FORBIDDEN:
                raise
            lost = "the pods' logs may not be read here (get on pods/log is forbidden); the Job is waited for without"
        yield LogEnded(lost)


class Once:
    """Lets each line of a log pass once. Asked for anew, a log begins with the last second again: times in the API
    are whole seconds, lines may come in the same instant, and those of two streams somewhat out of order."""

    def __init__(self) -> None:
        self._second = self._zone = ""
        self._last: Counter[str] = Counter()
        self._again: Counter[str] = Counter()

    def anew(self) -> str | None:
        """The log is asked for anew: from this time on (None: from its beginning)."""
        self._again = self._last.copy()
        return self._second + self._zone if self._second else None

    def __call__(self, line: str) -> str | None:
        """The text of a line that begins with its time (RFC 3339), or None where it came before."""
        stamp, _, text = line.partition(" ")
        if self._again[line] > 0:
            self._again[line] -= 1
            return None
        if stamp[:19] > self._second:
            self._second, self._zone = stamp[:19], stamp[19:].lstrip(".0123456789") or "Z"
            self._last.clear()
        if stamp[:19] == self._second:
            self._last[line] += 1
        return text


def log_lines(api: Api, pod: str, stop: threading.Event) -> Iterator[str | None]:
    """A pod's log as it grows, until its container has ended, each line once, across broken connections and outages. A
    last None: the rest is lost, with the pod or its node.

    Raises Refused: we may not read logs.
    """
    path = f"/api/v1/namespaces/{api.namespace}/pods/{pod}"
    once, failures, pause = Once(), 0, PAUSE_S
    while not stop.is_set():
        started, ended = time.monotonic(), False
        try:
            # Asked before reading, so that the last lines are not missed.
            ended = PodState.read(api.get(path)).exit_code is not None
            query = {"container": CONTAINER, "follow": True, "timestamps": True, "sinceTime": once.anew()}
            for line in api.lines(f"{path}/log", QUIET_S, stop, **query):
                pause = PAUSE_S
                if (text := once(line)) is not None:
                    yield text
            if ended:
                return
        except TransientError:
            failures += ended
        except Refused as error:
            if error.status not in (400, EXPIRED, 404):  # 400: the container is still being created
                raise
            failures = LOST_LOG_TRIES if error.status == 404 else failures + ended
        if failures >= LOST_LOG_TRIES:
            yield None
            return
        stop.wait(started + pause - time.monotonic())
        pause = min(pause * 2, LONGEST_PAUSE_S)
