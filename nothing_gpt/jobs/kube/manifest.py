"""The Job that is submitted: a manifest that a person could apply too, with a run's own values set in it."""

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

from nothing_gpt.config import GKESettings
from nothing_gpt.errors import FatalError
from nothing_gpt.jobs.kube.objects import CONTAINER, FINGERPRINT, STORE
from nothing_gpt.ranks import ENDPOINT

LABELS = {"app.kubernetes.io/name": "nothing-gpt", "app.kubernetes.io/component": "training"}
"""Our Jobs, among others in the namespace."""
GPU = "nvidia.com/gpu"
SERVICE, PORT = "training", 29400
"""Headless Service, and port of the first pod, at which the pods of one training meet; k8s/training.yaml has them."""


def job_name(fingerprint: str, store: str) -> str:
    """The name of the Job that makes `fingerprint` in the store at this address: a DNS label, the same every time."""
    return f"train-{_digest(fingerprint)[:16]}-{_digest(store)[:8]}"


def manifest(
    settings: GKESettings, fingerprint: str, store: str, image: str, gpus: int = 1, nodes: int = 1
) -> dict[str, Any]:
    """The Job in `settings.manifest`, filled in: one pod with `gpus` GPUs, or `nodes` of them that meet at the first.

    Raises FatalError: there is no such file, no Job in it whose container we know, or its resources cannot be
    multiplied.
    """
    try:
        job = yaml.safe_load(Path(settings.manifest).read_bytes())
    except OSError as error:
        raise FatalError(f"{settings.manifest}: {error.strerror}; see place.gke.manifest") from None
    except yaml.YAMLError as error:
        raise FatalError(f"{settings.manifest}: not YAML ({' '.join(str(error).split())})") from None
    labels = LABELS | {FINGERPRINT: fingerprint}
    try:
        metadata, spec = job["metadata"], job["spec"]
        template = spec["template"]
        container = next(one for one in template["spec"]["containers"] if one["name"] == CONTAINER)
        template["metadata"] = template.get("metadata") or {}
        for described in (metadata, template["metadata"]):
            described["labels"] = (described.get("labels") or {}) | labels
        metadata["annotations"] = (metadata.get("annotations") or {}) | {STORE: store}
    except (KeyError, TypeError, AttributeError, StopIteration):
        raise FatalError(f"{settings.manifest}: not a Job with a container named {CONTAINER}") from None
    metadata["name"] = job_name(fingerprint, store)
    metadata["namespace"] = settings.namespace
    spec["activeDeadlineSeconds"] = round(settings.running_hours * 3600)
    container["image"] = image
    container["args"] = ["--store", store, "--job", fingerprint]
    if gpus > 1:
        try:
            _ask_for(container, gpus)
        except (KeyError, TypeError, AttributeError):
            raise FatalError(
                f"{settings.manifest}: training.gpus={gpus} takes the resources of the container {CONTAINER} so many "
                "times; give them in whole numbers, with a unit or without"
            ) from None
    if nodes > 1:
        _index(job, container, nodes)
    return job


def _ask_for(container: dict[str, Any], gpus: int) -> None:
    """What the container takes, once for each GPU's process; the disk they share."""
    for asked in container["resources"].values():
        for name in asked.keys() - {"ephemeral-storage"}:
            number, unit = re.fullmatch(r"(\d+)([a-zA-Z]*)", str(asked[name])).groups()  # pyright: ignore[reportOptionalMemberAccess]
            asked[name] = int(number) * gpus if name == GPU else f"{int(number) * gpus}{unit}"


def _index(job: dict[str, Any], container: dict[str, Any], nodes: int) -> None:
    """An Indexed Job: each pod knows its place, and has the host name JOB-PLACE below the headless Service's."""
    spec = job["spec"]
    spec.update(completionMode="Indexed", completions=nodes, parallelism=nodes)
    spec["template"]["spec"]["subdomain"] = SERVICE
    meeting = f"{job['metadata']['name']}-0.{SERVICE}:{PORT}"
    container["env"] = [*(container.get("env") or ()), {"name": ENDPOINT, "value": meeting}]
    container["ports"] = [{"name": "rendezvous", "containerPort": PORT}]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
