"""The place `gke` from end to end: real flows, a real Kubernetes whose pods train for real, and a Cloud Storage server
that is not ours. Only the machines under it are missing.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from prefect.client.orchestration import get_client

from flows.provision import free_slots
from nothing_gpt.checkpoints import COMPLETE
from nothing_gpt.embedded.judge import MODEL, OfflineJudge
from nothing_gpt.embedded.serving import LocalVLLM
from nothing_gpt.serve.registry import read_registry
from nothing_gpt.store import Store, open_store
from nothing_gpt.vllm_admin import VLLM
from tests import fake_gcs
from tests.chain import tiny
from tests.chain.processes import Command
from tests.chain.test_embedded import SMALL
from tests.kube import Cluster, wait_for

pytestmark = [pytest.mark.kube, pytest.mark.timeout(900)]

IMAGE = "registry/train@sha256:" + "0" * 64
SETTINGS = tiny.SETTINGS.model_copy(update={"num_train_epochs": 100, "save_steps": 20, "eval_steps": 200})
"""600 steps: time enough to be preempted twice."""
TRAINING = [part for name, value in SETTINGS.model_dump(exclude_defaults=True).items()
            for part in ("--set", f"training.{name}={value}")]  # fmt: skip


@dataclass
class Machine:
    """Where flows are started: a data folder, a bucket, and a cluster that shares nothing but the bucket with it. Their
    Prefect server is one of all tests."""

    cluster: Cluster
    namespace: str
    folder: Path
    store: Store
    started: list[Command] = field(default_factory=list)

    def start(self, *arguments: str, **place: object) -> Command:
        given = {"kind": "gke", "data": self.folder / "data", "bucket": self.store.uri,
                 "gke.namespace": self.namespace, "gke.image": IMAGE, **place}  # fmt: skip
        options = [part for name, value in given.items() for part in ("--set", f"place.{name}={value}")]
        self.started.append(Command(*arguments, *options, log=self.folder / f"{len(self.started)}.log"))
        return self.started[-1]

    def train(self, model: Path, *more: str, **place: object) -> Command:
        folders = ["--data", str(model / "data"), "--adapter", str(model / "sft")]
        return self.start("train", *folders, *TRAINING, *more, base_model=model / "base", **place)

    @property
    def jobs(self) -> list[Any]:
        return client.BatchV1Api(self.cluster.api).list_namespaced_job(self.namespace).items

    @property
    def pods(self) -> list[Any]:
        return [pod for job in self.jobs for pod in self.cluster.pods(self.namespace, job.metadata.name)]

    def preempt_after_another_checkpoint(self, running: Command) -> None:
        """Takes the pod away once it has a checkpoint more in the bucket; returns when the next one is there."""
        seen, pods = self.checkpoints(), self.pods
        running.until(lambda: self.checkpoints() - seen)
        self.cluster.preempt(self.pods[-1].metadata.name, self.namespace)
        wait_for(lambda: len(self.pods) > len(pods or [None]), "another pod")

    def checkpoints(self) -> set[str]:
        """Names of the whole ones in the bucket."""
        keys = [key.split("/") for key in self.store.list("checkpoints")]
        return {key[-2] for key in keys if key[-1] == COMPLETE and key[-2].startswith("checkpoint-")}


def metrics(store: Store) -> dict[str, Any]:
    """Those of the one training in a store."""
    (key,) = [key for key in store.list("train") if key.endswith("/metrics.json")]
    return json.loads(store.read(key) or b"")


@pytest.fixture
def machine(
    cluster: Cluster, namespace: str, emulator: str, prefect: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Machine:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, key in {"hf-secret": "HF_TOKEN", "wandb-secret": "WANDB_API_KEY"}.items():
        secret = client.V1Secret(metadata=client.V1ObjectMeta(name=name), string_data={key: ""})
        client.CoreV1Api(cluster.api).create_namespaced_secret(namespace, secret)
    store = open_store(f"gs://{fake_gcs.BUCKET}/{namespace}", cache=tmp_path / "look")
    return Machine(cluster, namespace, tmp_path, store)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("model"))


def test_preempted_twice_and_its_flow_killed_it_ends_as_if_undisturbed(machine: Machine, model: Path) -> None:
    first = machine.train(model)
    machine.preempt_after_another_checkpoint(first)
    machine.preempt_after_another_checkpoint(first)
    first.until("going on from checkpoint-")
    first.kill_everything_when(lambda: True)
    with get_client(sync_client=True) as prefect:
        free_slots(prefect)  # else it waits a minute for those of the killed flow
    machine.train(model).finish()  # finds the Job at work or done
    assert len(machine.jobs) == 1
    assert len(machine.pods) == 3

    machine.train(model, kind="local", data=machine.folder / "undisturbed").finish()
    store = open_store(str(machine.folder / "undisturbed" / "store"))
    for figure in ("eval_loss", "eval_margin", "train_loss"):
        assert metrics(machine.store)[figure] == pytest.approx(metrics(store)[figure], abs=1e-4)


def test_a_cancelled_flow_leaves_neither_job_nor_pods(machine: Machine, model: Path) -> None:
    longer = {"num_train_epochs": 100, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    running = machine.train(model, *(f"--set=training.{name}={value}" for name, value in longer.items()))  # 2,400 steps
    running.until(machine.checkpoints)
    running.process.terminate()  # as Prefect does
    assert running.wait() != 0
    assert "deleted, as the run was interrupted" in running.output
    wait_for(lambda: not machine.jobs and not machine.pods, "the Job is gone, and its pods with it")
    assert running.alive() == []


@dataclass
class Engines:
    """The demo's base model, starting adapter and prompts, a vLLM and a judge."""

    options: list[str]
    place: dict[str, object]
    vllm: VLLM


@pytest.fixture(scope="module")
def embedded(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    (base,), (sft,), (prompts,) = (
        [path.parent for path in (demo / "store" / stage).glob("*/manifest.json")]
        for stage in ("base", "sft", "scripts")
    )
    with LocalVLLM(base, tmp_path_factory.mktemp("vllm") / "log") as server, OfflineJudge() as judge:
        vllm = VLLM(server.base_url)
        vllm.load("seinfeld", str(sft))
        place: dict[str, object] = {
            "serve_url": server.base_url, "judge_url": judge.url, "base_model": base, "sft_adapter": sft,
        }  # fmt: skip
        files = json.dumps([str(prompts / "prompts.jsonl")])
        options = [*SMALL, "--set", f"prompts.paths={files}", "--set", f"judge.model={MODEL}"]
        yield Engines(options, place, vllm)


def test_a_run_trains_in_the_cluster_and_promotes_what_comes_back(machine: Machine, embedded: Engines) -> None:
    output = machine.start("run", *embedded.options, **embedded.place).finish()
    (version,) = read_registry(machine.store).versions
    assert (version.place, f"train/{version.fingerprint}") == ("gke", version.artifact)
    assert metrics(machine.store)["step0_loss"] == pytest.approx(math.log(2), abs=0.02)
    assert "Promoted: the new adapter is served as seinfeld" in output
    assert str(embedded.vllm.models()["seinfeld"]).endswith(version.artifact)
    assert [job.status.succeeded for job in machine.jobs] == [1]
