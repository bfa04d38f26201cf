"""Training as a Kubernetes Job on GKE: submitted or found again, watched to its end, its log shown here as it comes.

The Job's name comes of what it makes and where, so asking twice makes one Job, and a flow that died finds its own. The
file knows nothing of artifacts: exit code 0 is success here, and the caller then looks for what was to be made.
Run against a Kubernetes control plane, and against constructed answers of GKE's own parts (autoscaler, image pulls).
"""

import re
import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from nothing_gpt.config import GKESettings
from nothing_gpt.errors import FatalError, NothingGPTError, TransientError
from nothing_gpt.jobs.kube.api import EXPIRED, Api, Refused, patiently
from nothing_gpt.jobs.kube.manifest import LABELS, job_name, manifest
from nothing_gpt.jobs.kube.objects import JobState, PodState
from nothing_gpt.jobs.kube.waiting import Patience, Waiting, order_deletion, pods_of
from nothing_gpt.jobs.kube.watching import log_lines
from nothing_gpt.progress import say


class GKE:
    """The Jobs in one namespace of a cluster. No method raises anything but FatalError and TransientError."""

    def __init__(
        self,
        settings: GKESettings,
        say: Callable[[str], None] = say,
        on_line: Callable[[str], None] | None = None,
        patience: Patience | None = None,
    ):
        """`say` gets what a person is to know, `on_line` each line of the pods' logs (default: `say` too)."""
        self._settings = settings
        self._say = say
        self._on_line = on_line or say
        self._patience = patience or Patience()
        self._jobs = f"/apis/batch/v1/namespaces/{settings.namespace}/jobs"

    @cached_property
    def _api(self) -> Api:
        return Api(self._settings.context, self._settings.namespace, self._patience.request)

    def run(
        self, fingerprint: str, store: str, image: str, replace: bool = False, gpus: int = 1, nodes: int = 1
    ) -> None:
        """Returns when the Job that makes `fingerprint` in `store` (an address), in this `image`, has succeeded: on
        `nodes` machines with `gpus` GPUs each.

        A Job that is there already is waited for; one that failed is made anew, and with `replace` also one that
        succeeded (what it made is gone). Whatever interrupts this (Ctrl-C, a cancelled flow) deletes the Job, and none
        that has replaced it; a fault leaves it to be found again, unless it cannot start.

        Raises:
            TransientError: the cluster did not answer for too long, preemptions used up the Job's tries, or somebody
                deleted it.
            FatalError: it failed, or cannot start; the message says why and what to do.
        """
        body, job = manifest(self._settings, fingerprint, store, image, gpus, nodes), None
        try:
            job = patiently(lambda: self._submit(body, fingerprint, store, replace), self._patience.submit, self._say)
            if not job.succeeded:
                waiting = Waiting(self._api, job, self._settings, self._say, self._on_line, self._patience)
                waiting.to_the_end()
        except Refused as error:
            if job is None:
                raise
            raise FatalError(f"{error}; Job {job.name} goes on, and is found again by the next run") from None
        except Exception:
            raise
        except BaseException:  # KeyboardInterrupt, or what Prefect stops a flow with
            self._cancelled(job_name(fingerprint, store), job.uid if job else None)
            raise

    def list(self) -> list[tuple[JobState, tuple[PodState, ...]]]:
        """Our Jobs, oldest first, each with its pods."""
        selector = ",".join(f"{key}={value}" for key, value in LABELS.items())
        jobs = map(JobState.read, self._api.get(self._jobs, labelSelector=selector)["items"])
        return [(job, pods_of(self._api, job.name)) for job in sorted(jobs, key=lambda job: job.created)]

    def logs(self, name: str) -> None:
        """Gives the logs of the Job's pods to `on_line`; that of a running one until it ends."""
        self._find(name)
        for pod in pods_of(self._api, name):
            if not pod.started:
                self._say(f"pod {pod.name} has not started" + (f": {pod.waiting}" if pod.waiting else ""))
                continue
            for line in log_lines(self._api, pod.name, threading.Event()):
                if line is None:
                    self._say(f"the rest of pod {pod.name}'s log is gone with its node")
                else:
                    self._on_line(line)

    def cancel(self, name: str) -> None:
        """Deletes the Job with its pods, and returns when they are gone."""
        self._delete(self._find(name))

    def _find(self, name: str) -> JobState:
        try:
            if re.fullmatch(r"[a-z0-9.-]+", name):  # anything else, such as nothing, would be another path
                return JobState.read(self._api.get(f"{self._jobs}/{name}"))
        except Refused as error:
            if error.status != 404:
                raise
        raise FatalError(
            f"no Job {name} in namespace {self._settings.namespace}; `nothing-gpt jobs list` shows what there is"
        )

    def _submit(self, body: dict[str, Any], fingerprint: str, store: str, replace: bool) -> JobState:
        """The Job, new or found."""
        name, namespace = body["metadata"]["name"], self._settings.namespace
        while True:
            try:
                job = JobState.read(self._api.post(self._jobs, body))
                self._say(f"Job {name}: submitted to namespace {namespace} of {self._api.server}")
                return job
            except Refused as error:
                if error.status == EXPIRED:
                    raise
                if error.status != 409:
                    raise self._not_created(error) from None
            try:
                job = JobState.read(self._api.get(f"{self._jobs}/{name}"))
            except Refused as error:
                if error.status != 404:  # it went at this moment
                    raise
                continue
            if (job.fingerprint, job.store) != (fingerprint, store):
                raise FatalError(
                    f"Job {name} in namespace {namespace} is another: it makes '{job.fingerprint}' in "
                    f"'{job.store}'; `nothing-gpt jobs cancel {name}` deletes it"
                )
            if not (job.deleting or job.failed or (job.succeeded and replace)):
                self._say(f"Job {name}: found, from {job.created}, {job.state}")
                return job
            self._say(f"Job {name}: the one from {job.created} is {job.state} and is replaced")
            self._delete(job)

    def _not_created(self, error: Refused) -> FatalError:
        namespace = self._settings.namespace
        if error.status == 404:
            return FatalError(f"no namespace {namespace} at {self._api.server}: `kubectl create namespace {namespace}`")
        if error.status == 403:
            return FatalError(f"{error}; `nothing-gpt doctor` with these settings says which rights are missing")
        return FatalError(f"{error}; see {self._settings.manifest}")

    def _delete(self, job: JobState) -> None:
        """Deletes this Job, and returns when it and its pods are gone."""
        deadline = time.monotonic() + self._patience.deletion
        while time.monotonic() < deadline:
            try:
                if not job.deleting:
                    order_deletion(self._api, job.name, job.uid)
                now = JobState.read(self._api.get(f"{self._jobs}/{job.name}"))
            except Refused as error:
                if error.status == 404:
                    return
                if error.status != 409:  # another of its name
                    raise
                return
            if now.uid != job.uid:
                return
            job = now
            time.sleep(0.3)
        raise TransientError(f"Job {job.name} was deleted, but is still there after {self._patience.deletion:g} s")

    def _cancelled(self, name: str, uid: str | None) -> None:
        """Deletes the Job of a run that was interrupted, and says how that went. Without `uid`: whatever the
        submission, whose answer has not come, has made."""
        try:
            patiently(lambda: order_deletion(self._api, name, uid), 2 * self._patience.request, self._say)
        except NothingGPTError as error:
            if isinstance(error, Refused) and error.status in (404, 409):  # it was not made yet, or has been replaced
                return
            self._say(f"Job {name} may still run: {error}; `nothing-gpt jobs cancel {name}` ends it")
        else:
            self._say(f"Job {name}: deleted, as the run was interrupted; its pod gets 15 seconds to save a checkpoint")
