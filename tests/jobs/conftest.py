"""The training Job with a small shell script in place of training, in a namespace of its own."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from nothing_gpt.config import GKESettings
from nothing_gpt.jobs.gke import GKE
from nothing_gpt.jobs.kube import waiting, watching
from nothing_gpt.jobs.kube.waiting import Patience
from tests.kube import REPOSITORY, Cluster

MANIFEST = REPOSITORY / "k8s" / "train-job.yaml"
IMAGE = "registry.example/train@sha256:" + "0" * 64
STORE = "gs://bucket/prefix"
HASTY = Patience(request=3, submit=30, mending=1, deletion=60, look=0.2)

Write = Callable[..., str]


@pytest.fixture
def write_manifest(tmp_path: Path) -> Write:
    """Writes the project's manifest with another command, and other values in the Job's and the pod's spec."""

    def write(script: str, pod: dict[str, Any] | None = None, **spec: Any) -> str:
        job = yaml.safe_load(MANIFEST.read_text())
        job["spec"] |= spec
        job["spec"]["template"]["spec"] |= pod or {}
        job["spec"]["template"]["spec"]["containers"][0]["command"] = ["sh", "-c", script, "sh"]
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        return str(path)

    return write


class Told(list[str]):
    """What was said and what the log's lines were, in order: lines after `> `."""

    def gke(self, settings: GKESettings, patience: Patience = HASTY) -> GKE:
        return GKE(settings, self.append, lambda line: self.append(f"> {line}"), patience)

    @property
    def lines(self) -> list[str]:
        return [entry[2:] for entry in self if entry.startswith("> ")]

    @property
    def said(self) -> str:
        return "\n".join(entry for entry in self if not entry.startswith("> "))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def secrets(cluster: Cluster, namespace: str) -> None:
    """The secrets of the manifest. The test cluster's node wants even the optional one."""
    for name, key in {"hf-secret": "HF_TOKEN", "wandb-secret": "WANDB_API_KEY"}.items():
        secret = client.V1Secret(metadata=client.V1ObjectMeta(name=name), string_data={key: "x"})
        client.CoreV1Api(cluster.api).create_namespaced_secret(namespace, secret)


class Clock:
    """The time as the wait sees it, which a test moves on."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    monkeypatch.setattr(watching, "WATCH_S", 1)
    monkeypatch.setattr(watching, "QUIET_S", 3.0)
    return clock
