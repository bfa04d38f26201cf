"""The training Job with a small shell script in place of training, in a namespace of its own; and as a Job on the fake
API server, where the test says what becomes of it.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from nothing_gpt.config import GKESettings
from nothing_gpt.jobs.gke import GKE
from nothing_gpt.jobs.kube import waiting, watching
from nothing_gpt.jobs.kube.manifest import job_name
from nothing_gpt.jobs.kube.waiting import Patience
from tests.jobs import objects
from tests.jobs.fake_api import FakeApi, serving
from tests.kube import REPOSITORY, Cluster, wait_for

MANIFEST = REPOSITORY / "k8s" / "train-job.yaml"
IMAGE = "registry.example/train@sha256:" + "0" * 64
STORE = "gs://bucket/prefix"
HASTY = Patience(request=3, submit=30, mending=1, deletion=60, look=0.2)

Write = Callable[..., str]

# Of the runs on the fake API server.
FINGERPRINT = "0123abcd"
NAME = job_name(FINGERPRINT, STORE)
POD = f"{NAME}-x7k2p"
PATIENT = replace(HASTY, request=20, submit=60, mending=60, look=0.05)
SCHEDULING = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
Run = Callable[..., "Future[None]"]


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
        return GKE(settings, self.append, lambda line: self.on_line(line), patience)

    def on_line(self, line: str) -> None:
        self.append(f"> {line}")

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


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(watching, "PAUSE_S", 0.02)
    with serving(tmp_path / "kubeconfig") as server:
        yield server


@pytest.fixture
def start(fake: FakeApi, told: Told) -> Iterator[Run]:
    """Runs the Job in a thread of its own."""
    with ThreadPoolExecutor() as pool:

        def submit(patience: Patience = PATIENT, replace: bool = False, **settings: Any) -> "Future[None]":
            gke = told.gke(GKESettings(manifest=str(MANIFEST), **settings), patience)
            return pool.submit(gke.run, FINGERPRINT, STORE, IMAGE, replace)

        yield submit
        fake.faults.clear()
        if NAME in fake.objects["jobs"]:  # a test that failed leaves nobody waiting
            fake.remove("jobs", NAME)


def job(fake: FakeApi, *conditions: dict[str, str]) -> None:
    """The Job as it was made, with conditions of its end."""
    wait_for(lambda: NAME in fake.objects["jobs"], "the Job is there")
    fake.put("jobs", {**fake.objects["jobs"][NAME], "status": {"conditions": list(conditions)}})


def trains(fake: FakeApi, pod: str = POD) -> None:
    """The Job's pod runs."""
    wait_for(lambda: NAME in fake.objects["jobs"], "the Job is there")
    fake.put("pods", objects.pod(pod, **objects.runs()))


def ends(fake: FakeApi, code: int = 0, pod: str = POD, **status: Any) -> None:
    fake.write(pod, end=True)
    fake.put("pods", objects.pod(pod, **objects.ended(code, **status)))


def lines(*texts: str, second: int = 0) -> list[str]:
    """Lines of a log, all written in the same instant."""
    return [f"2026-11-21T12:00:{second:02d}.123456789Z {text}" for text in texts]


def succeeds(fake: FakeApi) -> None:
    ends(fake)
    job(fake, objects.condition("Complete"))


def ended_job(fake: FakeApi, *conditions: dict[str, str]) -> str:
    """A Job of an earlier run; returns its uid."""
    labels, annotations = {"nothing-gpt/fingerprint": FINGERPRINT}, {"nothing-gpt/store": STORE}
    metadata = {"name": NAME, "labels": labels, "annotations": annotations}
    fake.put("jobs", {"metadata": metadata, "status": {"conditions": list(conditions)}})
    return fake.objects["jobs"][NAME]["metadata"]["uid"]
