"""The Job that is submitted: a manifest that a person could apply too, with a run's own values set in it."""

import hashlib
from pathlib import Path
from typing import Any

import yaml

from nothing_gpt.config import GKESettings
from nothing_gpt.errors import FatalError
from nothing_gpt.jobs.kube.objects import CONTAINER, FINGERPRINT, STORE

LABELS = {"app.kubernetes.io/name": "nothing-gpt", "app.kubernetes.io/component": "training"}
"""Our Jobs, among others in the namespace."""


def job_name(fingerprint: str, store: str) -> str:
    """The name of the Job that makes `fingerprint` in the store at this address: a DNS label, the same every time."""
    return f"train-{_digest(fingerprint)[:16]}-{_digest(store)[:8]}"


def manifest(settings: GKESettings, fingerprint: str, store: str, image: str) -> dict[str, Any]:
    """The Job in `settings.manifest`, filled in.

    Raises FatalError: there is no such file, or no Job in it whose container we know.
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
    return job


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
