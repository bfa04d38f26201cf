"""The doctor's look at the GPU quota, against a server that answers as the documentation of compute.regions.get has it
(quotas of metric, limit and usage; errors as {error: {code, message}}). Not recorded from Compute Engine."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest
from google.auth import exceptions
from google.auth.credentials import AnonymousCredentials

from flows import findings, gpu_quota
from flows.findings import Finding
from nothing_gpt.errors import FatalError
from tests.fake_endpoint import running

SPOT_L4 = {gpu_quota.ACCELERATOR: "nvidia-l4", gpu_quota.SPOT: "true"}
NODE = "gce://my-project/us-central1-a/gke-cluster-default-pool-1"
QUOTAS = [
    {"metric": "CPUS", "limit": 24.0, "usage": 3.0},
    {"metric": "NVIDIA_L4_GPUS", "limit": 1.0, "usage": 1.0},
    {"metric": "PREEMPTIBLE_NVIDIA_L4_GPUS", "limit": 4.0, "usage": 0.0},
]


class Compute(ThreadingHTTPServer):
    """Knows one region. `answer` is what it says of it."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answer: Callable[[], tuple[int, Any]] = lambda: (200, {"quotas": QUOTAS})
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, body = cast(Compute, self.server).answer()
        if self.path != "/projects/my-project/regions/us-central1?fields=quotas":
            status, body = 404, {"error": {"code": 404, "message": self.path}}
        payload = b"<html>" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def compute(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compute]:
    with running(Compute()) as server:
        monkeypatch.setattr(gpu_quota, "COMPUTE", f"http://127.0.0.1:{server.server_port}")
        yield server


def look(labels: dict[str, str] = SPOT_L4, node: str = NODE) -> Finding:
    return gpu_quota.gpu_quota(node, labels, AnonymousCredentials)


def limits(compute: Compute, **limits: float) -> None:
    compute.answer = lambda: (
        200, {"quotas": [{"metric": name, "limit": limit, "usage": 0.0} for name, limit in limits.items()]}
    )  # fmt: skip


def test_a_quota_that_is_there_is_shown_with_its_use(compute: Compute) -> None:
    spot, standard = look(), look({gpu_quota.ACCELERATOR: "nvidia-l4"})
    assert spot.what == "GPU quota PREEMPTIBLE_NVIDIA_L4_GPUS of my-project in us-central1: 0 of 4 used"
    assert standard.what == "GPU quota NVIDIA_L4_GPUS of my-project in us-central1: 1 of 1 used"
    assert spot.ok
    assert standard.ok  # a machine that is there already may be free


def test_no_quota_is_a_lack_with_the_command_that_asks_for_one(compute: Compute) -> None:
    limits(compute, PREEMPTIBLE_NVIDIA_L4_GPUS=0, NVIDIA_L4_GPUS=0)
    found = look()
    assert not found.ok
    assert "PREEMPTIBLE_NVIDIA_L4_GPUS of my-project in us-central1: 0 of 0 used" in found.what
    assert (
        "`gcloud beta quotas preferences create --service=compute.googleapis.com --project=my-project "
        "--quota-id=PREEMPTIBLE-NVIDIA-L4-GPUS-per-project-region --dimensions=region=us-central1 --preferred-value=1`"
    ) in found.remedy


def test_a_spot_machine_without_a_quota_of_its_own_uses_that_of_the_others(compute: Compute) -> None:
    limits(compute, PREEMPTIBLE_NVIDIA_L4_GPUS=0, NVIDIA_L4_GPUS=1)
    assert look().ok
    assert "GPU quota NVIDIA_L4_GPUS " in look().what


@pytest.mark.parametrize(
    ("accelerator", "name"),
    [("nvidia-tesla-t4", "NVIDIA_T4_GPUS"), ("nvidia-a100-80gb", "NVIDIA_A100_80GB_GPUS")],
)
def test_the_quota_is_that_of_the_nodes_accelerator(accelerator: str, name: str) -> None:
    assert gpu_quota.metrics({gpu_quota.ACCELERATOR: accelerator}) == [name]


def test_a_region_that_lists_no_such_quota_is_no_lack(compute: Compute) -> None:
    limits(compute, CPUS=24)
    assert look() == Finding(
        "GPU quota of my-project in us-central1: no PREEMPTIBLE_NVIDIA_L4_GPUS is listed there", True
    )


@pytest.mark.parametrize("node", ["", "kind://docker/kind/kind-control-plane", "gce://my-project"])
def test_a_cluster_elsewhere_has_no_quota_to_look_at(compute: Compute, node: str) -> None:
    assert look(node=node) == Finding(
        "GPU quota: not looked at, as no node says which project and region this is", True
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            (403, {"error": {"code": 403, "message": "compute.regions.get is missing"}}),
            r"403 .*: compute\.regions\.get ",
        ),
        ((503, None), "503 "),
        ((200, None), "Expecting value"),
    ],
)
def test_what_compute_engine_does_not_tell_is_said_and_no_lack(
    compute: Compute, answer: tuple[int, Any], reason: str
) -> None:
    compute.answer = lambda: answer
    found = look()
    assert found.ok
    assert re.match(rf"GPU quota of my-project in us-central1: not looked at \({reason}", found.what)


def refuses(error: Exception) -> Callable[[], None]:
    def credentials() -> None:
        raise error

    return credentials


@pytest.mark.parametrize(
    "error", [FatalError("place.gcp_block: no such block"), exceptions.DefaultCredentialsError("none were found")]
)
def test_without_credentials_it_is_said_and_no_lack(compute: Compute, error: Exception) -> None:
    found = gpu_quota.gpu_quota(NODE, SPOT_L4, refuses(error))
    assert (found.ok, found.what.endswith(f"not looked at ({error})")) == (True, True)


def test_nobody_there_and_nobody_who_answers_hold_the_doctor_up_no_longer_than_all_else(
    compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(findings, "LIMIT_S", 0.2)
    compute.answer = lambda: (200 if answered.wait(60) else 500, {})
    assert "not looked at (no answer within" in look().what
    answered.set()
    monkeypatch.setattr(gpu_quota, "COMPUTE", "http://127.0.0.1:1")
    monkeypatch.setattr(findings, "LIMIT_S", 20.0)
    assert look().ok
    assert "not looked at (HTTPConnectionPool" in look().what
