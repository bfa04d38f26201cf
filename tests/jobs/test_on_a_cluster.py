"""The training Job on a real Kubernetes control plane, its pods real processes; only what they run is a script."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from nothing_gpt.config import GKESettings
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.jobs.kube import watching
from nothing_gpt.jobs.kube.manifest import job_name
from tests.conftest import Start
from tests.jobs.conftest import HASTY, IMAGE, STORE, Told, Write
from tests.kube import Cluster, wait_for

pytestmark = pytest.mark.kube

FINGERPRINT = "0123abcd"
NAME = job_name(FINGERPRINT, STORE)
STEPS = """
trap 'echo saved; exit 75' TERM
step=$(cat {state} 2>/dev/null || echo 0)
while [ $step -lt {steps} ]; do step=$((step+1)); echo $step >{state}; echo step $step; sleep 0.2; done
echo trained
"""
"""Counts its steps in a file, and goes on there after SIGTERM."""


@pytest.fixture(autouse=True)
def kubeconfig(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))


def jobs(cluster: Cluster, namespace: str) -> list[Any]:
    return client.BatchV1Api(cluster.api).list_namespaced_job(namespace).items


def running(cluster: Cluster, namespace: str) -> list[str]:
    """Names of the Job's pods that run."""
    return [pod.metadata.name for pod in cluster.pods(namespace, NAME) if pod.status.phase == "Running"]


def numbers(lines: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith("step ")]


@pytest.mark.usefixtures("secrets")
def test_a_job_that_succeeds_shows_its_log_once_and_in_order(namespace: str, write_manifest: Write, told: Told) -> None:
    script = 'echo "args: $@"; for i in $(seq 40); do echo line $i; done; sleep 1; echo last; printf unfinished'
    settings = GKESettings(namespace=namespace, manifest=write_manifest(script))
    told.gke(settings).run(FINGERPRINT, STORE, IMAGE)
    lines = [f"args: --store {STORE} --job {FINGERPRINT}", *(f"line {i}" for i in range(1, 41)), "last", "unfinished"]
    assert told.lines == lines
    assert f"Job {NAME} succeeded" in told.said

    told.clear()
    told.gke(settings).run(FINGERPRINT, STORE, IMAGE)  # there is nothing left to do
    assert told.lines == []

    told.gke(settings).logs(NAME)
    assert told.lines == lines


@pytest.mark.usefixtures("secrets")
def test_a_job_preempted_twice_goes_on_and_every_line_comes_once(
    cluster: Cluster, namespace: str, write_manifest: Write, told: Told, tmp_path: Path
) -> None:
    script = STEPS.format(state=tmp_path / "steps", steps=25)
    gke = told.gke(GKESettings(namespace=namespace, manifest=write_manifest(script)))
    with ThreadPoolExecutor() as pool:
        run = pool.submit(gke.run, FINGERPRINT, STORE, IMAGE)
        for number in (1, 2):
            before = len(numbers(told.lines))
            wait_for(lambda at=before: len(numbers(told.lines)) > at + 3 or run.done(), f"steps of pod {number}")
            cluster.preempt(running(cluster, namespace)[0], namespace)
            wait_for(lambda n=number: told.lines.count("saved") == n, "the pod's last line")
        run.result(timeout=100)
    assert numbers(told.lines) == list(range(1, 26))
    assert told.said.count("was taken away with exit code 75 (Terminated: Pod was terminated in response to") == 2
    assert told.lines[-1] == "trained"


@pytest.mark.usefixtures("secrets")
def test_a_training_that_fails_ends_with_its_own_reason_and_the_next_run_replaces_it(
    cluster: Cluster, namespace: str, write_manifest: Write, told: Told
) -> None:
    # This control plane drops podFailurePolicy, so that exit code 1 fails at once only without further tries.
    script = "echo reading; echo 'error: beta is not a number; mend it' >&2; exit 1"
    settings = GKESettings(namespace=namespace, manifest=write_manifest(script, backoffLimit=0))
    with pytest.raises(FatalError, match=f"^Job {NAME}: beta is not a number; mend it$"):
        told.gke(settings).run(FINGERPRINT, STORE, IMAGE)
    assert told.lines == ["reading", "error: beta is not a number; mend it"]
    failed = jobs(cluster, namespace)[0].metadata.uid

    write_manifest("nothing-like-this --now", backoffLimit=0)
    with pytest.raises(FatalError, match=r"exit code 127.*its command is not in the image.*its log ends: "):
        told.gke(settings).run(FINGERPRINT, STORE, IMAGE)
    assert "is failed (BackoffLimitExceeded) and is replaced" in told.said
    assert [job.metadata.uid for job in jobs(cluster, namespace)] != [failed]


@pytest.mark.usefixtures("secrets")
def test_tries_used_up_by_preemptions_are_a_fault_that_passes(
    namespace: str, write_manifest: Write, told: Told
) -> None:
    settings = GKESettings(namespace=namespace, manifest=write_manifest("exit 75", backoffLimit=0))
    with pytest.raises(TransientError, match=r"asks to be tried again .*run again: it goes on from its last"):
        told.gke(settings).run(FINGERPRINT, STORE, IMAGE)


@pytest.mark.usefixtures("secrets")
def test_after_kill_9_the_next_run_finds_the_running_job(
    cluster: Cluster, namespace: str, write_manifest: Write, told: Told, child: Start, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    manifest = write_manifest(f"echo begun; while [ ! -e {go} ]; do sleep 0.1; done; echo trained")
    first = child(RUN, namespace, manifest, FINGERPRINT, STORE, IMAGE)
    assert first.stdout
    while "> begun" not in (line := first.stdout.readline()):
        assert line, "the first run ended"
    first.kill()
    first.wait()
    [job] = jobs(cluster, namespace)

    with ThreadPoolExecutor() as pool:
        run = pool.submit(told.gke(GKESettings(namespace=namespace, manifest=manifest)).run, FINGERPRINT, STORE, IMAGE)
        wait_for(lambda: "begun" in told.lines or run.done(), "the second run shows the log")
        go.touch()
        run.result(timeout=100)
    assert f"Job {NAME}: found" in told.said
    assert told.lines == ["begun", "trained"]
    assert [one.metadata.uid for one in jobs(cluster, namespace)] == [job.metadata.uid]
    assert len(cluster.pods(namespace, NAME)) == 1


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_deletes_its_job(
    cluster: Cluster, namespace: str, write_manifest: Write, child: Start, interrupt: signal.Signals
) -> None:
    manifest = write_manifest("trap 'exit 75' TERM; echo begun; while true; do sleep 0.1; done")
    run = child(RUN, namespace, manifest, FINGERPRINT, STORE, IMAGE)
    assert run.stdout
    while "> begun" not in (line := run.stdout.readline()):
        assert line, "the run ended"
    os.kill(run.pid, interrupt)
    out, _ = run.communicate(timeout=60)
    assert f"Job {NAME}: deleted, as the run was interrupted" in out
    wait_for(lambda: not jobs(cluster, namespace) and not cluster.pods(namespace, NAME), "Job and pods are gone")


def test_a_missing_secret_is_named_with_the_command_that_makes_it(
    cluster: Cluster, namespace: str, write_manifest: Write, told: Told
) -> None:
    settings = GKESettings(namespace=namespace, manifest=write_manifest("echo never"))
    with pytest.raises(FatalError, match=r"cannot start: CreateContainerConfigError") as caught:
        told.gke(settings).run(FINGERPRINT, STORE, IMAGE)
    assert f"kubectl -n {namespace} create secret generic hf-secret --from-literal=HF_TOKEN=VALUE" in str(caught.value)
    wait_for(lambda: not jobs(cluster, namespace), "the Job that cannot start is gone")


@pytest.mark.usefixtures("secrets")
def test_a_pod_that_never_fits_is_given_up_with_the_reason(
    cluster: Cluster, namespace: str, write_manifest: Write, told: Told
) -> None:
    manifest = write_manifest("echo never", pod={"nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-h100"}})
    settings = GKESettings(namespace=namespace, manifest=manifest, scheduling_minutes=0.05)
    with pytest.raises(FatalError, match=r"did not start within 0.05 minutes.*Unschedulable: 0/1 nodes.*nvidia-h100"):
        told.gke(settings).run(FINGERPRINT, STORE, IMAGE)
    assert "waits: Unschedulable" in told.said
    wait_for(lambda: not jobs(cluster, namespace), "the Job that does not fit is gone")


@pytest.fixture
def silence_noticed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "QUIET_S", 4.0)
    monkeypatch.setattr(watching, "WATCH_S", 2)


@pytest.mark.usefixtures("secrets", "silence_noticed_soon")
def test_an_api_server_that_hangs_for_a_minute_neither_ends_nor_doubles_the_job_of_two_flows(
    cluster: Cluster, namespace: str, write_manifest: Write, told: Told, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    steps = f"while [ ! -e {go} ]; do step=$((step+1)); echo step $step; sleep 0.2; done; echo trained"
    settings = GKESettings(namespace=namespace, manifest=write_manifest(steps), scheduling_minutes=0.1)
    hasty = Told()
    with ThreadPoolExecutor() as pool:
        run = pool.submit(told.gke(settings).run, FINGERPRINT, STORE, IMAGE)
        wait_for(lambda: len(told.lines) > 5 or run.done(), "the training has begun")
        second = pool.submit(hasty.gke(settings, replace(HASTY, outage=4)).run, FINGERPRINT, STORE, IMAGE)
        wait_for(lambda: len(hasty.lines) > 5 or second.done(), "the second flow has found it")
        cluster.pause()
        try:
            time.sleep(60)  # much longer than the longest wait for a node
            assert "does not answer" in told.said
            assert not run.done()
            with pytest.raises(TransientError, match=r"has not answered for .* is left alone"):
                second.result(timeout=60)
        finally:
            cluster.resume()
        go.touch()
        run.result(timeout=120)
    assert f"Job {NAME}: found" in hasty.said
    assert "the cluster answers again" in told.said
    assert told.lines == [*(f"step {number}" for number in range(1, len(told.lines))), "trained"]
    assert len(jobs(cluster, namespace)) == 1
    assert len(cluster.pods(namespace, NAME)) == 1


@pytest.mark.usefixtures("secrets")
def test_jobs_are_listed_and_cancelled_by_name(
    cluster: Cluster, namespace: str, write_manifest: Write, told: Told
) -> None:
    gke = told.gke(GKESettings(namespace=namespace, manifest=write_manifest("echo begun; sleep 300")))
    with ThreadPoolExecutor() as pool:
        run = pool.submit(gke.run, FINGERPRINT, STORE, IMAGE)
        wait_for(lambda: "begun" in told.lines or run.done(), "the training has begun")
        [(job, [pod])] = gke.list()
        assert (job.name, job.fingerprint, job.store, job.state) == (NAME, FINGERPRINT, STORE, "active")
        assert pod.started
        gke.cancel(NAME)
        assert cluster.pods(namespace, NAME) == []
        with pytest.raises(TransientError, match="is gone from the cluster"):
            run.result(timeout=60)
    assert gke.list() == []
    with pytest.raises(FatalError, match=f"no Job {NAME} in namespace {namespace}"):
        gke.logs(NAME)


RUN = """
import signal, sys
from nothing_gpt.config import GKESettings
from nothing_gpt.jobs.gke import GKE

class Cancelled(BaseException):  # as Prefect's TerminationSignal
    pass

def cancel(*_):
    raise Cancelled

signal.signal(signal.SIGTERM, cancel)
say = lambda line: print(line, flush=True)
namespace, manifest, *job = sys.argv[1:]
GKE(GKESettings(namespace=namespace, manifest=manifest), say, lambda line: say(f"> {line}")).run(*job)
"""
