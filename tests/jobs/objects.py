"""Jobs, pods and events as the API gives them, in the states that a test needs."""

from typing import Any

from tests.jobs.fake_api import NOW


def pod(name: str, created: str = NOW, **status: Any) -> dict[str, Any]:
    """A pod of the Job; without a status it waits for a node."""
    need = {"valueFrom": {"secretKeyRef": {"name": "hf-secret", "key": "HF_TOKEN"}}}
    extra = {"valueFrom": {"secretKeyRef": {"name": "wandb-secret", "key": "WANDB_API_KEY", "optional": True}}}
    return {
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"nodeName": "node-1", "containers": [{"name": "train", "env": [need, extra]}]},
        "status": {"phase": "Pending", **status},
    }


def container(**state: Any) -> list[dict[str, Any]]:
    return [{"name": "train", "state": state}]


def runs() -> dict[str, Any]:
    return {"phase": "Running", "containerStatuses": container(running={"startedAt": NOW})}


def waits(reason: str, message: str = "") -> dict[str, Any]:
    return {"phase": "Pending", "containerStatuses": container(waiting={"reason": reason, "message": message})}


def unschedulable(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def ended(code: int, reason: str = "Error", **status: Any) -> dict[str, Any]:
    terminated = {"exitCode": code, "reason": reason, "finishedAt": NOW}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": container(terminated=terminated), **status}


def event(about: str, reason: str, message: str, at: str = NOW) -> dict[str, Any]:
    return {
        "metadata": {"name": f"{about}.{reason}.{at}", "creationTimestamp": at},
        "involvedObject": {"name": about},
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
    }


def condition(kind: str, reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": reason, "message": message}
