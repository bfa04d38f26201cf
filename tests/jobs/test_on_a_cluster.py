"""The training Job on a real Kubernetes control plane, its pods real processes; only what they run is a small script."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kubernetes import client

from nothing_gpt.config import GKESettings
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.jobs.kube.manifest import job_name
from tests.conftest import Start
from tests.jobs.conftest import HASTY, IMAGE, STORE, Told, Write
from tests.kube import Cluster, wait_for

pytestmark = [pytest.mark.kube, pytest.mark.usefixtures("secrets")]

FINGERPRINT = "0123abcd"
NAME = job_name(FINGERPRINT, STORE)


@pytest.fixture(autouse=True)
def kubeconfig(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))


def jobs(cluster: Cluster, namespace: str) -> list[str]:
    return [job.metadata.name for job in client.BatchV1Api(cluster.api).list_namespaced_job(namespace).items]  # type: ignore[union-attr]


def running(cluster: Cluster, namespace: str) -> list[str]:
    """Names of the Job's pods that run."""
    return [pod.metadata.name for pod in cluster.pods(namespace, NAME) if pod.status.phase == "Running"]


def test_a_job_that_succeeds_shows_its_log_once_and_in_order(namespace: str, write_manifest: Write, told: Told) -> None:
    script = 'echo "args: $@"; for i in $(seq 40); do echo line $i; done; sleep 2; echo last; printf unfinished'
    settings = GKESettings(namespace=namespace, manifest=write_manifest(script))
    told.gke(settings).run(FINGERPRINT, STORE, IMAGE)
    assert told.lines == [
        f"args: --store {STORE} --job {FINGERPRINT}", *(f"line {i}" for i in range(1, 41)), "last", "unfinished"
    ]  # fmt: skip
    assert f"Job {NAME} succeeded" in told.said
    told.clear()
    told.gke(settings).run(FINGERPRINT, STORE, IMAGE)  # it is there already
    assert "found" in told.said
    assert told.lines == []
    told.gke(settings).run(FINGERPRINT, STORE, IMAGE, replace=True)
    assert told.lines[-1] == "unfinished"
