"""What we read of a Job and its pods, out of the API's JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

CONTAINER = "train"
FINGERPRINT = "nothing-gpt/fingerprint"
"""Label of a Job: what it makes."""
INDEX = "batch.kubernetes.io/job-completion-index"
"""Annotation of an Indexed Job's pod: its place."""
STORE = "nothing-gpt/store"
"""Annotation of a Job: address of the store in which it makes it."""

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Reason:
    """Why something is as it is: the API's word in CamelCase, and its sentence."""

    word: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.word}: {self.text}" if self.text else self.word


@dataclass(frozen=True)
class JobState:
    """A Job: `failed` is why it failed for good, and None while it may still succeed."""

    name: str
    uid: str
    created: str
    fingerprint: str
    store: str
    succeeded: bool
    failed: Reason | None
    deleting: bool

    @classmethod
    def read(cls, job: Json) -> Self:
        metadata = job["metadata"]
        holds = _true_conditions(job)
        return cls(
            metadata["name"],
            metadata["uid"],
            metadata["creationTimestamp"],
            metadata.get("labels", {}).get(FINGERPRINT, ""),
            metadata.get("annotations", {}).get(STORE, ""),
            "Complete" in holds,
            holds.get("Failed"),
            "deletionTimestamp" in metadata,
        )

    @property
    def state(self) -> str:
        if self.deleting:
            return "being deleted"
        return "succeeded" if self.succeeded else f"failed ({self.failed.word})" if self.failed else "active"


@dataclass(frozen=True)
class PodState:
    """A pod of a Job. `started` and `exit_code` are those of the container that trains."""

    name: str
    created: str
    node: str | None
    started: bool
    ended: bool
    exit_code: int | None
    reason: Reason | None
    """Why it ended, beyond its exit code: what the pod says of itself, or its container (OOMKilled, StartError)."""
    disrupted: bool
    """Its node was taken away, it was evicted, or it was deleted: not its own fault."""
    waiting: Reason | None
    """Why it does not start: a container's reason, or the scheduler's."""
    index: int = 0
    """Its place among the pods of an Indexed Job; the first talks for all."""
    needs: tuple[tuple[str, str, str], ...] = ()
    """What it does not start without: kind (secret, configmap), name and key."""

    @classmethod
    def read(cls, pod: Json) -> Self:
        status, metadata = pod.get("status", {}), pod["metadata"]
        states = {one["name"]: one.get("state", {}) for one in status.get("containerStatuses", [])}
        ours = states.get(CONTAINER, {})
        terminated = ours.get("terminated")
        phase = status.get("phase", "Pending")
        disruption = _true_conditions(pod).get("DisruptionTarget")
        reason = None
        if status.get("reason"):
            reason = Reason(status["reason"], status.get("message", ""))
        elif disruption:
            reason = disruption
        elif terminated and terminated.get("reason") not in (None, "Error", "Completed"):
            reason = Reason(terminated["reason"], terminated.get("message", ""))
        return cls(
            metadata["name"],
            metadata["creationTimestamp"],
            pod.get("spec", {}).get("nodeName"),
            "running" in ours or terminated is not None,
            phase in ("Succeeded", "Failed"),
            terminated["exitCode"] if terminated else None,
            reason,
            disruption is not None or "deletionTimestamp" in metadata or status.get("reason") in DISRUPTIONS,
            None if phase != "Pending" else _waiting(status),
            int(metadata.get("annotations", {}).get(INDEX, 0)),
            tuple(_needs(pod)),
        )


DISRUPTIONS = {"Evicted", "Terminated", "NodeShutdown", "Shutdown", "NodeLost", "Preempting"}
"""Reasons of a pod's end that are not its own fault, from clusters that do not know the condition DisruptionTarget."""


def _waiting(status: Json) -> Reason | None:
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return Reason(waiting["reason"], _one_line(waiting.get("message", "")))
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Reason(condition.get("reason", "Unschedulable"), _one_line(condition.get("message", "")))
    return None


def _needs(pod: Json) -> Iterator[tuple[str, str, str]]:
    for container in pod.get("spec", {}).get("containers", []):
        for variable in container.get("env", []):
            for kind in ("secret", "configMap"):
                source = variable.get("valueFrom", {}).get(f"{kind}KeyRef")
                if source and not source.get("optional"):
                    yield kind.lower(), source["name"], source["key"]


def _true_conditions(thing: Json) -> dict[str, Reason]:
    return {
        condition["type"]: Reason(condition.get("reason", ""), _one_line(condition.get("message", "")))
        for condition in thing.get("status", {}).get("conditions", [])
        if condition["status"] == "True"
    }


def _one_line(text: str) -> str:
    return " ".join(text.split())
