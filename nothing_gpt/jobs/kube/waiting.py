"""Waiting for a Job's end: what comes is shown, what cannot come any more is given up, an outage is borne."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nothing_gpt.config import GKESettings
from nothing_gpt.errors import FatalError, NothingGPTError, TransientError
from nothing_gpt.jobs.kube import diagnosis
from nothing_gpt.jobs.kube.api import EXPIRED, Api, Refused
from nothing_gpt.jobs.kube.objects import JobState, PodState
from nothing_gpt.jobs.kube.watching import Event, Line, LogEnded, Seen, Silent, Watching

TAIL_LINES = 20


@dataclass(frozen=True)
class Patience:
    """How long is waited for what, in seconds."""

    request: float = 10.0
    submit: float = 120.0
    """For an API server that does not answer before there is a Job."""
    outage: float = 3600.0
    """For an API server that does not answer while the Job runs; it runs on without."""
    mending: float = 180.0
    """For somebody to make what a pod lacks: a secret, an image."""
    deletion: float = 120.0
    log: float = 60.0
    """For the last lines of a Job that has ended."""
    look: float = 10.0
    """From one look at why no pod runs to the next."""


class Waiting:
    """One wait for the end of a Job."""

    def __init__(
        self,
        api: Api,
        job: JobState,
        settings: GKESettings,
        say: Callable[[str], None],
        on_line: Callable[[str], None],
        patience: Patience,
    ):
        self._api, self._job, self._settings, self._patience = api, job, settings, patience
        self._say, self._on_line = say, on_line
        self._pods: tuple[PodState, ...] = ()
        self._told: set[str] = set()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._logs_begun: set[str] = set()
        self._log_open = False
        # Since when, as time.monotonic():
        self._idle_since = time.monotonic()  # no pod runs
        self._stuck_since: float | None = None  # and it takes a person to change that
        self._silent_since: float | None = None  # the API server does not answer
        self._ended_at: float | None = None
        self._looked_at = float("-inf")
        self._why = ""

    def to_the_end(self) -> None:
        """Returns when the Job has succeeded and its pods' logs have been shown.

        Raises:
            TransientError: the cluster was away for too long (the Job is left alone), the Job's tries are used up, or
                it is gone: whoever deleted it need not be the only one who wants what it makes.
            FatalError: it failed, or cannot start, and is deleted then.
        """
        with Watching(self._api, self._job.name) as events:
            while True:
                event = events.next(min(1.0, self._patience.look))
                if event is not None:  # time limits hold once all that has come is known
                    self._take(event, events)
                elif self._ended_at is not None:
                    if not self._log_open or time.monotonic() - self._ended_at > self._patience.log:
                        return self._close()
                elif self._silent_since is not None:
                    self._bear_silence()
                elif not any(pod.started and not pod.ended for pod in self._pods):
                    self._look_why()

    def _take(self, event: Event, events: Watching) -> None:
        match event:
            case Line(text):
                self._tail.append(text)
                self._on_line(text)
            case LogEnded(lost):
                self._log_open = False
                if lost:
                    self._tell(lost, lost)
            case Silent(error):
                if self._silent_since is None:
                    self._silent_since = time.monotonic()
                    self._say(f"{error}; Job {self._job.name} goes on without, and is waited for")
            case Seen(None, None):
                raise TransientError(
                    f"Job {self._job.name} is gone from the cluster: somebody deleted it, or it ended and was "
                    "cleared away; the next try submits it again"
                )
            case Seen(job, pods):
                self._hear()
                if job:
                    self._see_job(job)
                if pods is not None:
                    self._see_pods(pods)
        if not self._log_open:
            self._open_next_log(events)

    def _hear(self) -> None:
        """The API server answered. Its silence does not count as waiting for a node."""
        if self._silent_since is None:
            return
        silence = time.monotonic() - self._silent_since
        self._idle_since += silence
        if self._stuck_since is not None:
            self._stuck_since += silence
        self._silent_since = None
        self._say(f"the cluster answers again, after {silence:.0f} s")

    def _see_job(self, job: JobState) -> None:
        if job.uid != self._job.uid:
            raise TransientError(f"Job {job.name} was replaced by another of its name; the next try waits for that")
        self._job = job
        if (job.succeeded or job.failed) and self._ended_at is None:
            self._ended_at = time.monotonic()
            try:
                self._see_pods(pods_of(self._api, job.name))  # the news of them may be behind that of the Job
            except TransientError:
                pass
            except Refused as error:
                if error.status != EXPIRED:
                    raise

    def _see_pods(self, pods: tuple[PodState, ...]) -> None:
        there = {pod.name for pod in pods}
        for pod in self._pods:
            if pod.name not in there and not pod.ended:
                self._tell(f"{pod.name} ended", f"pod {pod.name} is gone: it was deleted, or its node was")
        was_running = any(pod.started and not pod.ended for pod in self._pods)
        self._pods = pods
        for pod in pods:
            if pod.started:
                self._tell(f"{pod.name} runs", f"pod {pod.name} runs on {pod.node}")
            if pod.ended and pod.exit_code != 0:
                self._tell(f"{pod.name} ended", f"pod {pod.name} {diagnosis.ended(pod)}")
        if was_running or any(pod.started and not pod.ended for pod in pods):
            self._idle_since, self._stuck_since, self._why = time.monotonic(), None, ""

    def _tell(self, what: str, message: str) -> None:
        """Says what happened to a pod, once."""
        if what not in self._told:
            self._told.add(what)
            self._say(message)

    def _open_next_log(self, events: Watching) -> None:
        """One log at a time, in the pods' order; of a group's pods the first talks."""
        for pod in self._pods:
            if pod.index == 0 and pod.started and pod.name not in self._logs_begun:
                self._logs_begun.add(pod.name)
                self._tail.clear()
                self._log_open = True
                events.read_log(pod.name)
                return

    def _bear_silence(self) -> None:
        assert self._silent_since is not None
        silence = time.monotonic() - self._silent_since
        if silence > self._patience.outage:
            raise TransientError(
                f"the cluster at {self._api.server} has not answered for {silence / 60:.0f} minutes; Job "
                f"{self._job.name} is left alone, and is found again by the next run"
            )

    def _look_why(self) -> None:
        """No pod runs: says why, and gives up when that has lasted too long."""
        now = time.monotonic()
        if now - self._looked_at < self._patience.look:
            return
        self._looked_at = now
        newest = self._pods[-1] if self._pods and not self._pods[-1].ended else None
        try:
            wait = diagnosis.waiting(newest, self._events(newest), self._settings.namespace)
        except TransientError:
            return
        if wait and str(wait.why) != self._why:
            self._why = str(wait.why)
            self._say(f"Job {self._job.name} waits: {wait.why}")
        if wait is None or wait.mends_itself:
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = now
        limit_s = self._settings.scheduling_minutes * 60
        stuck_s = 0.0 if self._stuck_since is None else now - self._stuck_since
        if wait and (wait.hopeless or stuck_s > self._patience.mending):
            self._give_up("cannot start", wait)
        elif now - self._idle_since > limit_s:
            self._give_up(f"did not start within {limit_s / 60:g} minutes (place.gke.scheduling_minutes)", wait)

    def _events(self, pod: PodState | None) -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{self._api.namespace}/events"
        name = pod.name if pod else self._job.name
        try:
            return self._api.get(path, fieldSelector=f"involvedObject.name={name}")["items"]
        except Refused:  # we may not read them: then what the pod says of itself is all there is
            return []

    def _give_up(self, what: str, wait: diagnosis.Wait | None) -> None:
        name = self._job.name
        if wait:
            why = f"{wait.why}; {wait.todo}"
        else:
            why = f"nothing says why; see `kubectl -n {self._settings.namespace} describe job {name}`"
        try:
            order_deletion(self._api, name, self._job.uid)
            after = "it is deleted; run again when that is mended"
        except NothingGPTError as error:
            after = f"it is still there ({error})"
        raise FatalError(f"Job {name} {what}: {why}; {after}")

    def _close(self) -> None:
        if self._job.failed:
            pod = self._pods[-1] if self._pods else None
            raise diagnosis.failure(self._job, pod, list(self._tail), self._settings.running_hours)
        self._say(f"Job {self._job.name} succeeded")


def pods_of(api: Api, job: str) -> tuple[PodState, ...]:
    """The pods of the Job with this name, oldest first."""
    found = api.get(f"/api/v1/namespaces/{api.namespace}/pods", labelSelector=f"job-name={job}")["items"]
    return tuple(sorted(map(PodState.read, found), key=lambda pod: pod.created))


def order_deletion(api: Api, job: str, uid: str | None = None) -> None:
    """Has the Job deleted after its pods (foreground); with `uid` only that one, not one of its name made since."""
    body: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
    if uid:
        body["preconditions"] = {"uid": uid}
    api.delete(f"/apis/batch/v1/namespaces/{api.namespace}/jobs/{job}", body)
