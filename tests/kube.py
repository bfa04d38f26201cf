"""A Kubernetes to test against: a real control plane on this machine, whose node runs pods as local processes.

What starts and ends it lies beside the project, so elsewhere a cluster of one's own takes its place:
NOTHING_GPT_TEST_KUBECONFIG names its kubeconfig. What only the local one can do is skipped there.
"""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

REPOSITORY = Path(__file__).parent.parent
TOOL = REPOSITORY.parent / "shared" / "tools" / "kube"
GIVEN = "NOTHING_GPT_TEST_KUBECONFIG"
ENOUGH_S = 120.0
"""Longer than anything takes that is waited for here."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster. `state` is the local one's folder, None for a cluster that somebody gave us."""

    kubeconfig: Path
    state: Path | None

    @property
    def api(self) -> client.ApiClient:
        """A client of its own: each call makes a new one."""
        return config.new_client_from_config(str(self.kubeconfig))

    @contextmanager
    def namespace(self) -> Iterator[str]:
        """A new namespace. Its Jobs, Deployments and pods are gone at its end: there is one GPU."""
        name = f"test-{uuid.uuid4().hex[:8]}"
        core, batch, apps = client.CoreV1Api(self.api), client.BatchV1Api(self.api), client.AppsV1Api(self.api)
        core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name)))
        try:
            yield name
        finally:
            batch.delete_collection_namespaced_job(name, propagation_policy="Background")
            apps.delete_collection_namespaced_deployment(name, propagation_policy="Background")
            core.delete_collection_namespaced_pod(name, grace_period_seconds=1)
            wait_for(lambda: not core.list_namespaced_pod(name).items, "the test's pods are gone")
            core.delete_namespace(name)

    def pods(self, namespace: str, job: str) -> list[Any]:
        """The Job's pods (V1Pod), oldest first."""
        found: list[Any] = (
            client.CoreV1Api(self.api).list_namespaced_pod(namespace, label_selector=f"job-name={job}").items
        )
        return sorted(found, key=lambda pod: pod.metadata.creation_timestamp)

    def preempt(self, pod: str, namespace: str) -> None:
        """Takes the pod's spot node away: SIGTERM, at most 15 seconds, and the pod has failed."""
        self._ours()
        body = {"metadata": {"annotations": {"test/preempt": "true"}}}
        client.CoreV1Api(self.api).patch_namespaced_pod(pod, namespace, body)

    def pause(self) -> None:
        """The API server hangs: it accepts connections and answers nothing, until `resume`."""
        os.kill(self._apiserver(), signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._apiserver(), signal.SIGCONT)

    def _apiserver(self) -> int:
        return int((self._ours() / "apiserver.pid").read_text())

    def _ours(self) -> Path:
        if self.state is None:
            pytest.skip(f"the cluster of {GIVEN} is not ours to take away")
        return self.state


@contextmanager
def running(state: Path, storage: str) -> Iterator[Cluster]:
    """The cluster that was given, or a local one which ends with the block, or with this process however it ends.

    Pods of the local one find the project's Python and the Cloud Storage server at `storage`.
    """
    if given := os.environ.get(GIVEN):
        yield Cluster(Path(given), None)
        return
    if not (TOOL / "up").exists():
        pytest.skip(f"no Kubernetes to test against: {GIVEN} names no kubeconfig")
    python = REPOSITORY / ".venv" / "bin"
    environment = {
        "KUBE_NODE_PATH": str(python),
        "KUBE_NODE_CWD": str(REPOSITORY),
        "KUBE_PYTHON": str(python / "python"),
        "STORAGE_EMULATOR_HOST": storage,
        "HF_HUB_OFFLINE": "1",
    }
    # Its standard input ends when we do, even by SIGKILL.
    end = subprocess.Popen(
        ["sh", "-c", 'read _; exec "$0" "$1"', TOOL / "down", state], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        deadline = time.monotonic() + ENOUGH_S
        while True:
            up = subprocess.run(
                [TOOL / "up", state], env={**os.environ, **environment}, capture_output=True, text=True, timeout=900
            )
            if up.returncode == 0 and _alive(state / "controller-manager.pid"):
                break
            if up.returncode or time.monotonic() > deadline:
                log = (state / "controller-manager.log").read_text() if up.returncode == 0 else up.stderr
                pytest.fail(f"the test Kubernetes did not start: {log[-1000:]}", pytrace=False)
            # Its controller manager has a fixed port: another test Kubernetes runs on this machine.
            subprocess.run([TOOL / "down", state], check=True)
            time.sleep(2)
        cluster = Cluster(Path(up.stdout.split()[-1]), state)
        yield cluster
        cluster.resume()  # a stopped process does not end
    finally:
        end.communicate(timeout=ENOUGH_S)


def _alive(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Returns once the condition holds; while the API server is away it does not.

    Raises AssertionError after two minutes.
    """
    deadline = time.monotonic() + ENOUGH_S
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except ApiException as error:
            if error.status not in (404, 409, 500, 503, 504):
                raise
        time.sleep(0.2)
    raise AssertionError(f"waited for {ENOUGH_S:g} s in vain: {what}")
