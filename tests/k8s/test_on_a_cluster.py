"""The files below k8s/ on a real control plane, whose node runs a pod's command as a process of this machine.

The control plane is older than some fields, which it drops in silence, and nothing there enforces network policies.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, dynamic
from kubernetes.client.exceptions import ApiException

from flows.doctor_gke import PERMISSIONS, examine_gke
from flows.findings import Finding
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import GKESettings, PlaceSettings, Settings
from nothing_gpt.jobs.gke import GKE
from nothing_gpt.serve.fetch import want
from nothing_gpt.store import open_store
from tests import fake_gcs
from tests.fake_vllm import save_adapter
from tests.k8s.manifests import FOLDER, Manifest, find, lasting, read
from tests.kube import Cluster, wait_for

pytestmark = pytest.mark.kube
IMAGE = "registry.example/train@sha256:" + "0" * 64
NEWER = {"Deployment/vllm.spec.template.spec.initContainers.1.restartPolicy"}
"""What the local control plane drops."""


def create(cluster: Cluster, namespace: str, manifest: Manifest) -> Any:
    """Makes the object; what the cluster made of it."""
    kinds = dynamic.DynamicClient(cluster.api).resources
    kind = kinds.get(api_version=manifest["apiVersion"], kind=manifest["kind"])
    return kind.create(body=manifest, namespace=namespace).to_dict()


def lost(sent: Any, stored: Any, path: str) -> Iterator[str]:
    """Paths of what was sent and is not stored."""
    if isinstance(sent, dict):
        for key, value in sent.items():
            if key not in (stored or {}):
                yield f"{path}.{key}"
            else:
                yield from lost(value, stored[key], f"{path}.{key}")
    elif isinstance(sent, list):
        for index, value in enumerate(sent):
            yield from lost(value, stored[index], f"{path}.{index}")


def test_all_of_it_is_accepted_as_it_stands(cluster: Cluster, namespace: str) -> None:
    missing: set[str] = set()
    for manifest in lasting():
        if manifest["kind"] == "Namespace":
            continue
        if manifest["kind"] == "Deployment":
            manifest["spec"]["replicas"] = 0  # what the pods do is another test's
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        missing |= set(lost(manifest, create(cluster, namespace, manifest), name))
    assert missing == (NEWER if cluster.state else set())


def become(cluster: Cluster, namespace: str, account: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the cluster is asked as this service account."""
    core: Any = client.CoreV1Api(cluster.api)
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}
    token = core.create_namespaced_service_account_token(account, namespace, asked).status.token
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    (folder / account).write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(folder / account))


def doctor(namespace: str) -> list[Finding]:
    gke = {"namespace": namespace, "image": "image@sha256:0", "manifest": str(FOLDER / "train-job.yaml")}
    return list(examine_gke(Settings.model_construct(place=PlaceSettings.model_validate({"kind": "gke", "gke": gke}))))


@pytest.fixture
def accounts(cluster: Cluster, namespace: str) -> None:
    for manifest in lasting():
        if manifest["kind"] in ("ServiceAccount", "Role", "RoleBinding"):
            create(cluster, namespace, manifest)


@pytest.mark.usefixtures("accounts")
def test_the_doctor_finds_that_the_worker_may_do_what_a_run_does_and_no_other_account_may(
    cluster: Cluster, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    become(cluster, namespace, "nothing-gpt-worker", tmp_path, monkeypatch)
    worker = doctor(namespace)
    assert [finding for finding in worker if not finding.ok] == []
    become(cluster, namespace, "nothing-gpt-serve", tmp_path, monkeypatch)
    other = doctor(namespace)
    refused = {finding.what for finding in other if not finding.ok}
    assert refused == {f"may {', '.join(verbs)} {resource}" for (_, resource), verbs in PERMISSIONS.items()}
    # Neither may read secrets; that is said, and is no lack.
    assert sum(finding.what.startswith("secret hf-secret: not looked at") for finding in (*worker, *other)) == 2


@pytest.mark.usefixtures("accounts")
def test_the_worker_s_rights_suffice_for_a_job_from_its_submission_to_its_deletion(
    cluster: Cluster, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, key in {"hf-secret": "HF_TOKEN", "wandb-secret": "WANDB_API_KEY"}.items():
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {key: "x"}}
        create(cluster, namespace, secret)
    (job,) = read("train-job.yaml")
    job["spec"]["template"]["spec"]["containers"][0]["command"] = ["sh", "-c", "echo trained"]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    become(cluster, namespace, "nothing-gpt-worker", tmp_path, monkeypatch)
    said: list[str] = []
    jobs = GKE(GKESettings(namespace=namespace, manifest=str(tmp_path / "job.yaml")), said.append)
    jobs.run("0123456789abcdef", "gs://bucket/runs", IMAGE)
    assert "trained" in said
    ((made, pods),) = jobs.list()
    assert len(pods) == 1
    jobs.cancel(made.name)
    assert jobs.list() == []


def test_who_may_look_sees_what_is_missing_and_that_it_is_mended(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))

    def missing() -> list[str]:
        return [finding.what for finding in doctor(namespace) if not finding.ok]

    assert missing() == ["secret hf-secret: it is not there", "service account nothing-gpt-train: it is not there"]
    create(cluster, namespace, find("ServiceAccount", "nothing-gpt-train"))
    values = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hf-secret"}, "stringData": {"HF_TOKEN": "x"}}
    create(cluster, namespace, values)
    assert missing() == []
    quota = {"hard": {"requests.nvidia.com/gpu": "0"}}
    create(
        cluster, namespace, {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "gpus"}, "spec": quota}
    )
    if cluster.state is None:  # the local control plane has no controller for quotas
        wait_for(lambda: missing() == ["resource quota gpus: 0 of 0 GPUs used"], "the quota is counted")


@pytest.fixture
def bucket(emulator: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    return Workshop(open_store(f"gs://{fake_gcs.BUCKET}/{namespace}", cache=tmp_path / "cache"), tmp_path / "work")


def adapter(workshop: Workshop, stage: str, level: float) -> Artifact:
    folder = save_adapter(workshop.work / f"{level}", level)
    return workshop.adopt(Stage(stage, 1), {path.name: path for path in sorted(folder.iterdir())})


def test_vllm_s_pod_fetches_its_adapter_first_and_then_what_runs_want(
    cluster: Cluster, namespace: str, bucket: Workshop
) -> None:
    """The local node does not know containers that run beside the next ones, so there the fetcher is the last to start;
    nor does it fill variables into arguments, as a kubelet does."""
    if cluster.state is None:
        pytest.skip("the images are not built")
    start, candidate = adapter(bucket, "sft", 0.25), adapter(bucket, "train", 0.5)
    settings, deployment = find("ConfigMap", "settings"), find("Deployment", "vllm")
    settings["data"]["STORE"] = bucket.store.uri
    for fetcher in deployment["spec"]["template"]["spec"]["initContainers"]:
        fetcher["args"] = [word.replace("$(STORE)", bucket.store.uri) for word in fetcher["args"]]
    create(cluster, namespace, settings)
    create(cluster, namespace, deployment)
    core: Any = client.CoreV1Api(cluster.api)

    def log(container: str) -> str:
        """What the newest pod's container said; nothing before it has started."""
        try:
            *_, pod = sorted(core.list_namespaced_pod(namespace).items, key=lambda pod: pod.metadata.creation_timestamp)
            return core.read_namespaced_pod_log(pod.metadata.name, namespace, container=container) or ""
        except (ValueError, ApiException):
            return ""

    wait_for(lambda: f"current: {start.key}" in log("adapter"), "the current adapter is fetched")
    want(bucket.store, candidate.key)
    wait_for(lambda: f"fetched {candidate.key}" in log("fetcher"), "the wanted adapter is fetched")
    assert json.loads(bucket.store.read("serving/wanted.json") or b"").keys() == {candidate.key}
