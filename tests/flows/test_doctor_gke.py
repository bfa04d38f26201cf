"""`nothing-gpt doctor --place gke`: each lack with the command that mends it, and never a long wait."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest
import yaml

from flows import doctor_gke, findings, gpu_quota
from flows.doctor_gke import GPU, IDENTITY, examine_gke
from flows.findings import Finding
from nothing_gpt.config import Settings
from nothing_gpt.errors import NothingGPTError, TransientError
from tests.fake_endpoint import FakeEndpoint, running
from tests.fake_gcs import FakeGCS
from tests.flows.conftest import Call

JOB = """
spec:
  template:
    spec:
      serviceAccountName: trainer
      nodeSelector: {gpu: l4}
      containers:
        - env:
            - {name: HOME, value: /tmp}
            - {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: hf-secret, key: HF_TOKEN}}}
            - {name: WANDB_API_KEY, valueFrom: {secretKeyRef: {name: wandb-secret, key: WANDB_API_KEY, optional: true}}}
"""


def secret(**values: str) -> dict[str, Any]:
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}}


@dataclass
class Contents:
    """What the cluster holds, by path, and what this account may not do."""

    objects: dict[str, Any] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    """Verbs and resources, and paths."""
    silent: threading.Event | None = None
    """Nothing is answered until it is set."""


class FakeCluster(ThreadingHTTPServer):
    """The part of a Kubernetes API server that the doctor asks."""

    daemon_threads = True

    def __init__(self) -> None:
        self.contents = Contents(
            {
                "/version": {"gitVersion": "v1.37.0"},
                "/api/v1/namespaces/nothing-gpt": {},
                "/api/v1/namespaces/nothing-gpt/secrets/hf-secret": secret(HF_TOKEN="hf_planted"),
                "/api/v1/namespaces/nothing-gpt/secrets/wandb-secret": secret(WANDB_API_KEY="planted"),
                "/api/v1/namespaces/nothing-gpt/serviceaccounts/trainer": {
                    "metadata": {"annotations": {IDENTITY: "a@b"}}
                },
                "/api/v1/namespaces/nothing-gpt/resourcequotas": {"items": []},
                "/api/v1/nodes?labelSelector=gpu%3Dl4": {"items": [{"status": {"allocatable": {GPU: "2"}}}]},
            }
        )
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client may give up at any time."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        contents = self._contents()
        if self.path in contents.forbidden:
            self._reply(403, {"message": f"forbidden: {self.path}"})
        elif self.path in contents.objects:
            self._reply(200, contents.objects[self.path])
        else:
            self._reply(404, {"message": f"not found: {self.path}"})

    def do_POST(self) -> None:
        contents = self._contents()
        assert self.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["spec"]["resourceAttributes"]
        assert asked["namespace"] == "nothing-gpt"
        what = " ".join(filter(None, (asked["verb"], asked["group"], asked["resource"], asked["subresource"])))
        self._reply(201, {"status": {"allowed": what not in contents.forbidden}})

    def _contents(self) -> Contents:
        contents = cast(FakeCluster, self.server).contents
        if contents.silent:
            contents.silent.wait(60)
        return contents

    def _reply(self, status: int, value: Any) -> None:
        payload = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def cluster_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Contents]:
    """A cluster in which nothing is missing; the kubeconfig names it."""
    with running(FakeCluster()) as server:
        kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield server.contents


def kubeconfig(file: Path, server: str) -> None:
    file.write_text(
        yaml.safe_dump(
            {
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                "clusters": [{"name": "here", "cluster": {"server": server}}],
                "users": [{"name": "me", "user": {"token": "token"}}],
            }
        )
    )


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path / "job.yaml"


@pytest.fixture
def settings(manifest: Path) -> Settings:
    return Settings.model_construct(place=place(manifest))


def place(manifest: Path, **gke: Any) -> Any:
    from nothing_gpt.config import PlaceSettings

    values = {"image": "image@sha256:0", "manifest": str(manifest), **gke}
    return PlaceSettings(kind="gke", bucket="gs://bucket/runs", gke=values)  # type: ignore[arg-type]


def missing(settings: Settings) -> list[str]:
    """The lines of what is missing, and no secret is in any line."""
    found = list(examine_gke(settings))
    assert not any("planted" in f"{finding.what}{finding.remedy}" for finding in found)
    return [f"{finding.what}: {finding.remedy}" for finding in found if not finding.ok]


def test_where_all_is_there_nothing_is_missing(cluster_api: Contents, settings: Settings) -> None:
    found = [finding.what for finding in examine_gke(settings) if finding.ok]
    assert missing(settings) == []
    assert found[1].endswith("Kubernetes v1.37.0")
    assert "may create, delete, get, list, watch jobs" in found
    assert "may get pods/log" in found
    assert "nodes for the Job: 1 now, GPUs: 2" in found


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        ("create batch jobs", "may create jobs"),
        ("watch pods", "may watch pods"),
        ("get pods log", "may get pods/log"),
        ("list events", "may list events"),
    ],
)
def test_a_verb_that_is_refused_is_named_with_the_role_that_allows_it(
    cluster_api: Contents, settings: Settings, verb: str, line: str
) -> None:
    cluster_api.forbidden.add(verb)
    (only,) = missing(settings)
    assert only.startswith(f"{line}: prevents training")
    assert "`kubectl -n nothing-gpt create rolebinding NAME --role=nothing-gpt-jobs --user=ACCOUNT`" in only


def test_a_missing_secret_is_named_with_the_command_that_makes_it(cluster_api: Contents, settings: Settings) -> None:
    del cluster_api.objects["/api/v1/namespaces/nothing-gpt/secrets/hf-secret"]
    assert missing(settings) == [
        "secret hf-secret: it is not there: prevents training; `kubectl -n nothing-gpt create secret generic hf-secret "
        "--from-literal=HF_TOKEN=...`"
    ]


@pytest.mark.parametrize("values", [{}, {"TOKEN": "hf_planted"}, {"HF_TOKEN": " \n"}])
def test_a_secret_without_the_key_is_missing_too(
    cluster_api: Contents, settings: Settings, values: dict[str, str]
) -> None:
    cluster_api.objects["/api/v1/namespaces/nothing-gpt/secrets/hf-secret"] = secret(**values)
    (only,) = missing(settings)
    assert only.startswith("secret hf-secret: it has no HF_TOKEN")


def test_a_secret_that_may_be_missing_is_only_mentioned(cluster_api: Contents, settings: Settings) -> None:
    del cluster_api.objects["/api/v1/namespaces/nothing-gpt/secrets/wandb-secret"]
    assert missing(settings) == []
    assert any("wandb-secret: it is not there, which is allowed" in finding.what for finding in examine_gke(settings))


def test_a_service_account_without_a_google_identity_is_named_with_the_command(
    cluster_api: Contents, settings: Settings
) -> None:
    cluster_api.objects["/api/v1/namespaces/nothing-gpt/serviceaccounts/trainer"] = {"metadata": {}}
    (only,) = missing(settings)
    assert "`kubectl -n nothing-gpt annotate serviceaccount trainer iam.gke.io/gcp-service-account=" in only


def test_what_may_not_be_looked_at_is_no_lack(cluster_api: Contents, settings: Settings) -> None:
    everything = set(cluster_api.objects) - {"/version"}
    cluster_api.objects = {"/version": {"gitVersion": "v1"}}
    cluster_api.forbidden = everything
    assert missing(settings) == []
    assert sum("not looked at" in finding.what for finding in examine_gke(settings)) == len(everything)


def test_a_used_up_quota_is_named(cluster_api: Contents, settings: Settings) -> None:
    status = {"hard": {f"requests.{GPU}": "1"}, "used": {f"requests.{GPU}": "1"}}
    others = {"metadata": {"name": "memory"}, "status": {"hard": {"requests.memory": "1Gi"}}}
    cluster_api.objects["/api/v1/namespaces/nothing-gpt/resourcequotas"] = {
        "items": [others, {"metadata": {"name": "gpus"}, "status": status}]
    }
    assert missing(settings) == [
        "resource quota gpus: 1 of 1 GPUs used: the Job waits for a free one; `kubectl -n nothing-gpt edit "
        "resourcequota gpus`"
    ]


def test_the_projects_quota_of_the_jobs_gpus_is_looked_at_where_any_node_says_which_project_that_is(
    cluster_api: Contents, settings: Settings, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selector = {gpu_quota.ACCELERATOR: "nvidia-l4", gpu_quota.SPOT: "true"}
    manifest.write_text(JOB.replace("{gpu: l4}", json.dumps(selector)))
    looked: list[tuple[str, dict[str, str]]] = []

    def look(node: str, labels: dict[str, str], credentials: Callable[[], object]) -> Finding:
        assert credentials() is None  # those of the surroundings, where the settings name no block
        looked.append((node, labels))
        return Finding("GPU quota", False, "raise it")

    monkeypatch.setattr(doctor_gke, "gpu_quota", look)
    nodes = "/api/v1/nodes?labelSelector=" + quote(",".join(f"{key}={value}" for key, value in selector.items()))
    cluster_api.objects |= {
        nodes: {"items": []},
        "/api/v1/nodes?limit=1": {"items": [{"spec": {"providerID": "gce://project/us-central1-a/node"}}]},
    }
    assert missing(settings) == ["GPU quota: raise it"]
    cluster_api.forbidden.add("/api/v1/nodes?limit=1")
    assert missing(settings) == ["GPU quota: raise it"]
    assert looked == [("gce://project/us-central1-a/node", selector), ("", selector)]


def test_a_pool_without_a_node_is_no_lack_but_said(cluster_api: Contents, settings: Settings) -> None:
    cluster_api.objects["/api/v1/nodes?labelSelector=gpu%3Dl4"] = {"items": []}
    assert missing(settings) == []
    assert any("0 now, GPUs: 0; a node pool with gpu=l4" in finding.what for finding in examine_gke(settings))


def test_without_an_image_or_a_registry_the_command_makes_one(cluster_api: Contents, manifest: Path) -> None:
    (only,) = missing(Settings.model_construct(place=place(manifest, image=None)))
    assert "`gcloud artifacts repositories create REPOSITORY" in only
    registry = "us-central1-docker.pkg.dev/project/repository"
    assert missing(Settings.model_construct(place=place(manifest, image=None, registry=registry))) == []


@pytest.mark.parametrize("content", [None, "", "a: [", "spec: {template: {spec: {}}}", "spec: 1"])
def test_a_manifest_that_is_none_is_one_line(cluster_api: Contents, manifest: Path, content: str | None) -> None:
    manifest.unlink() if content is None else manifest.write_text(content)
    (only,) = missing(Settings.model_construct(place=place(manifest)))
    assert only.startswith(f"manifest {manifest}: prevents training; it ")


def test_a_cluster_that_refuses_us_is_one_line(cluster_api: Contents, settings: Settings) -> None:
    cluster_api.forbidden.add("/version")
    (only,) = missing(settings)
    assert only.startswith("cluster: prevents training; the cluster at http://127.0.0.1:")


def test_without_a_cluster_the_command_gets_one(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    (only,) = missing(settings)
    assert "`gcloud container clusters get-credentials CLUSTER" in only


def test_a_silent_cluster_is_waited_for_once(
    cluster_api: Contents, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_gke, "TIMEOUT_S", 0.1)
    cluster_api.silent = threading.Event()
    (only,) = missing(settings)
    assert "does not answer" in only
    cluster_api.silent.set()


@pytest.fixture
def doctor(
    program: Call, tmp_path: Path, cluster_api: Contents, manifest: Path, gcs: FakeGCS, fake: FakeEndpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> Call:  # fmt: skip
    """The program's command, where nothing is missing."""
    monkeypatch.setattr("flows.doctor._packages", lambda training: [])
    values = {
        "place.serve_url": fake.url,
        "place.judge_url": fake.url,
        "judge.model": "fake",
        "place.bucket": "gs://bucket/runs",
        "place.base_model": "some/base",
        "place.base_revision": "c0ffee",
        "place.gke": json.dumps({"image": "image@sha256:0", "manifest": str(manifest)}),
    }
    options = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    return lambda *others: program("doctor", "--place", "gke", *options, *others)


def test_the_program_checks_all_of_the_place(doctor: Call, fake: FakeEndpoint) -> None:
    ended = doctor()
    assert (ended.code, ended.err) == (0, ""), ended.out
    for line in ("bucket gs://bucket/runs", "secret hf-secret", "service account trainer", f"judge {fake.url}"):
        assert f"ok       {line}" in ended.out


def test_a_silent_bucket_does_not_hold_the_doctor_up(
    doctor: Call, gcs: FakeGCS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "LIMIT_S", 0.5)
    answer = threading.Event()
    gcs.faults = {operation: [lambda: answer.wait(60)] * 9 for operation in ("get", "download", "list", "insert")}
    assert "MISSING  bucket gs://bucket/runs: prevents everything; no answer within" in doctor().out
    answer.set()


def test_where_vllm_is_in_the_cluster_the_command_brings_it_here(doctor: Call) -> None:
    ended = doctor("--set", "place.serve_url=http://127.0.0.1:1/v1")
    assert "`kubectl -n nothing-gpt port-forward service/vllm 8000` brings the cluster's here" in ended.out


def test_a_judge_whose_address_is_none_is_one_line(doctor: Call) -> None:
    (line,) = [line for line in doctor("--set", "place.judge_url=nowhere").out.splitlines() if "MISSING" in line]
    assert line.startswith("MISSING  judge nowhere: prevents judging and evaluation; ")


def test_the_place_s_own_settings_untouched_are_checked_line_by_line(
    program: Call, cluster_api: Contents, gcs: FakeGCS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.doctor._packages", lambda training: [])
    nowhere = [part for name in ("serve", "judge") for part in ("--set", f"place.{name}_url=http://127.0.0.1:1/v1")]
    lines = program("doctor", "--place", "gke", *nowhere).out
    for what in ("bucket gs://nothing-gpt-data", "image: none", "service account nothing-gpt-train", "vLLM", "judge"):
        assert f"MISSING  {what}" in lines


def test_a_place_without_settings_of_its_own_is_one_line(program: Call) -> None:
    assert program("doctor", "--place", "moon").error == (
        "--place moon: no settings for it (embedded, gke, modal have some); give them with --settings"
    )


def test_a_check_hands_on_what_it_returns_and_raises() -> None:
    def fail() -> None:
        raise TransientError("away")

    assert findings.within_limit(lambda: Finding("x", True)) == Finding("x", True)
    with pytest.raises(NothingGPTError, match=r"^away$"):
        findings.within_limit(fail)
