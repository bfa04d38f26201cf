"""A place that keeps everything in a bucket and trains by Jobs: the whole flow and every command, on our fake of Cloud
Storage and a cluster whose Jobs are calls. The real cluster is in `tests/jobs`.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter
from prefect.client.schemas.sorting import FlowRunSort

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.checkpoints import COMPLETE
from nothing_gpt.config import GKESettings, PlaceSettings
from nothing_gpt.dpo.order import fulfil
from nothing_gpt.dpo.train import train as library
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.serve.registry import read_registry
from nothing_gpt.store import Store, open_store
from tasks.results import kept
from tasks.train import train
from tests.fake_gcs import FakeGCS
from tests.fake_vllm import save_adapter, save_base
from tests.flows.conftest import Call, Ended
from tests.flows.fakes import START, Engines, Trainer, engines

pytestmark = [pytest.mark.prefect, pytest.mark.gcs, pytest.mark.timeout(180)]
pytest.importorskip("torch")

BUCKET = "gs://bucket/runs"
IMAGE = "registry/train@sha256:0"


@dataclass
class Cluster:
    """Does a Job at once, as its pod would: with a disk of its own, from the order in the store."""

    folder: Path
    trainer: Trainer = field(default_factory=Trainer)
    jobs: list[tuple[str, str, str]] = field(default_factory=list)
    does: Callable[[str, str], Any] | None = None
    registry: set[str] = field(default_factory=set)
    """Images that are there; one that is not is built, or the build is `refused`."""
    refused: Exception | None = None

    def __call__(self, settings: Any, on_line: Callable[[str], None]) -> "Cluster":
        self.on_line = on_line
        return self

    def run(self, fingerprint: str, store: str, image: str, replace: bool, gpus: int, nodes: int) -> None:
        assert replace
        self.jobs.append((fingerprint, store, image))
        self.on_line("train: a line of the pod's log")
        if self.does:
            self.does(fingerprint, store)
        else:
            self.pod(fingerprint, store)

    def found(self, settings: GKESettings, credentials: None) -> str | None:
        return settings.image or next(iter(self.registry), None)

    def ensure(self, name: str, registry: str, store: str, credentials: None) -> str:
        if self.refused:
            raise self.refused
        self.registry.add(IMAGE)
        return IMAGE

    def pod(self, fingerprint: str, store: str) -> None:
        fulfil(store, fingerprint, self.folder / "pod", partial(library, run=self.trainer))


@pytest.fixture
def place(tmp_path: Path, prefect: None, gcs: FakeGCS) -> Iterator[Engines]:
    with engines(tmp_path) as running:
        yield running


@pytest.fixture
def store(place: Engines) -> Store:
    """The bucket, as another machine sees it."""
    return open_store(BUCKET)


@pytest.fixture
def cluster(place: Engines, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster(place.folder)
    monkeypatch.setitem(sys.modules, "nothing_gpt.jobs.gke", SimpleNamespace(GKE=cluster))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "nothing_gpt.jobs.image", cluster)  # type: ignore[arg-type]
    monkeypatch.setattr(train, "retry_delay_seconds", [0.01])
    return cluster


Command = Callable[..., Ended]


@pytest.fixture
def command(call: Call, place: Engines, cluster: Cluster) -> Command:
    """The program in this place."""

    def run(*arguments: str, answer: str = "", **others: Any) -> Ended:
        given = {"place__kind": "gke", "place__bucket": BUCKET, "place__gke__image": IMAGE}
        return call(*arguments, *place.options(**(given | others)), answer=answer)

    return run


def contents(store: Store, folder: str) -> dict[str, bytes | None]:
    return {key.removeprefix(f"{folder}/"): store.read(key) for key in store.list(folder)}


def logged(line: str) -> list[str]:
    """Prefect's log of the latest run, once it holds the line: Prefect writes it a moment later."""
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
        logs = LogFilter.model_validate({"flow_run_id": {"any_": [run.id]}})
        while line not in (seen := [log.message for log in client.read_logs(logs)]) and time.monotonic() < deadline:
            time.sleep(0.2)
        return seen


def files(store: Store, artifact: str, *names: str) -> dict[str, bytes | None]:
    return {name: store.read(f"{artifact}/{name}") for name in names}


ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def test_a_run_trains_by_a_job_and_keeps_everything_in_the_bucket(
    command: Command, cluster: Cluster, place: Engines, store: Store
) -> None:
    ended = command("run")
    assert ended.code == 0, ended.err
    assert "Promoted: the new adapter is served as seinfeld" in ended.out
    assert "train: a line of the pod's log" in ended.err
    assert "train: a line of the pod's log" in logged("train: a line of the pod's log")
    (version,) = read_registry(store).versions
    assert cluster.jobs == [(version.fingerprint, BUCKET, IMAGE)]
    assert version.place == "gke"
    assert place.vllm.served()["seinfeld"] == str(place.data / "cache" / "bucket" / "runs" / version.artifact)
    assert not (place.data / "store").exists()

    lineage = json.loads(store.read(f"{version.artifact}/manifest.json") or b"")["lineage"]
    for folder, artifact, names in (
        ("data/dpo", lineage["pairs"], ("train.jsonl", "val.jsonl")),
        ("adapters/nothing-gpt-sft", lineage["adapter"], ADAPTER),
        ("adapters/nothing-gpt", version.artifact, ADAPTER),
    ):
        named = contents(store, folder)
        assert set(json.loads(named.pop(COMPLETE) or b"")) == set(names)
        assert named == files(store, artifact, *names)


def test_prefect_keeps_the_summary_in_the_bucket_for_whoever_looks_at_the_run(command: Command, store: Store) -> None:
    assert command("run", "--until", "pairs").code == 0
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
    assert run.state is not None
    result = run.state.result()
    assert result == json.loads(command("report", "--json").out)
    assert len(list(store.list("prefect"))) == 1


def test_a_second_bucket_takes_no_other_buckets_block(prefect: None, gcs: FakeGCS) -> None:
    places = [PlaceSettings(kind="gke", bucket=bucket) for bucket in (BUCKET, "gs://bucket/others", BUCKET)]
    first, second, again = (kept(place, {}).metadata.storage_block_id for place in places)
    assert first == again != second


def test_where_prefect_may_not_write_the_run_goes_on_without(
    command: Command, gcs: FakeGCS, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError("403 storage.buckets.get")

    monkeypatch.setattr("prefect_gcp.GcsBucket.write_path", refused)
    ended = command("run", "--until", "sft")
    assert ended.code == 0
    assert f"Prefect keeps no results in {BUCKET} (403 storage.buckets.get); the report is kept" in ended.err


def test_a_second_run_asks_for_no_job_and_changes_nothing_that_is_named(
    command: Command, cluster: Cluster, gcs: FakeGCS
) -> None:
    command("run")
    named = {name: stored.generation for name, stored in gcs.objects.items() if "/adapters/" in name or "/dpo/" in name}
    assert command("run").code == 0
    assert len(cluster.jobs) == 1
    assert {name: gcs.objects[name].generation for name in named} == named


def test_a_dry_run_asks_for_no_job_and_writes_nothing(command: Command, cluster: Cluster, gcs: FakeGCS) -> None:
    command("run", "--until", "pairs")
    before = {name: stored.generation for name, stored in gcs.objects.items()}
    ended = command("run", "--dry-run")
    shown = dict(line.split()[:2] for line in ended.out.splitlines()[1:-1])
    assert (shown["pairs"], shown["train"]) == ("cached", "to")
    assert cluster.jobs == []
    assert {name: stored.generation for name, stored in gcs.objects.items()} == before


def test_a_job_that_asks_to_be_tried_again_is_and_one_that_left_nothing_is_an_error(
    command: Command, cluster: Cluster
) -> None:
    def preempted(fingerprint: str, store: str) -> None:
        cluster.does = lambda *_: None
        raise TransientError("the node is gone")

    cluster.does = preempted
    ended = command("run", "--until", "train")
    assert ended.code == 1
    assert len(cluster.jobs) == 2
    assert ended.err.splitlines()[-1].endswith(
        f"{BUCKET}/train/{cluster.jobs[0][0]}: its Job ended with exit code 0, but there is no whole artifact; look at "
        "the Job's log, and run again"
    )


def test_the_commands_after_a_run_work_from_another_machine(
    command: Command, place: Engines, store: Store, tmp_path: Path
) -> None:
    """One whose data folder is empty, in the order in which a person would call them."""
    command("run")
    (version,) = read_registry(store).versions
    here = partial(command, place__data=str(tmp_path / "elsewhere"))
    assert "Promoted: the new adapter" in here("report").out
    assert (tmp_path / "elsewhere" / "report.html").is_file()
    assert here("adapters", "list").out.splitlines()[1].split()[:3] == ["->", "1", "seinfeld"]
    assert "this place has a vLLM of its own" in here("serve").error
    doctor = here("doctor").out
    assert f"ok       bucket {BUCKET}" in doctor
    assert f"{version.artifact} is now in {tmp_path / 'elsewhere' / 'store'}" in here("pull", version.artifact).err
    assert f"{version.artifact} was already in {BUCKET}" in here("push", version.artifact).err
    assert "seinfeld is the starting adapter again" in here("adapters", "rollback").err
    assert place.vllm.answers_like("seinfeld", place.start)
    assert contents(store, "adapters/nothing-gpt") == {}


def statuses(ended: Ended) -> dict[str, str]:
    """Of each stage in what `report --json` prints."""
    return {name: stage["status"] for name, stage in json.loads(ended.out)["stages"].items()}


def test_a_machine_without_prompts_and_adapter_goes_on_with_what_was_pushed(
    command: Command, cluster: Cluster, place: Engines, store: Store, tmp_path: Path
) -> None:
    """As a worker in the cluster, in whose settings stand the keys that `push` prints."""
    assert command("run", "--until", "generate_pairs").code == 0
    prompts, adapter = (command("push", str(path)).err.split()[0] for path in (place.prompts, place.start))
    asked = place.calls
    place.prompts.unlink()
    shutil.rmtree(place.start)
    there = partial(
        command,
        place__data=tmp_path / "worker",
        place__sft_adapter=adapter,
        prompts__paths=json.dumps([prompts]),
    )
    assert there("run", "--until", "generate_pairs").code == 0
    assert set(statuses(there("report", "--json")).values()) == {"cached"}
    assert place.calls == asked
    assert prompts not in there("prune", "--yes").out
    dry = dict(line.split()[:2] for line in there("run", "--dry-run", prompts__seed=7).out.splitlines()[1:-1])
    assert (dry["sft"], dry["prompts"], dry["generate_pairs"]) == ("cached", "to", "to")
    ended = there("run")
    assert ended.code == 0, ended.err
    assert [version.fingerprint for version in read_registry(store).versions] == [cluster.jobs[0][0]]


def test_the_image_is_had_before_anything_is_paid_for_or_uploaded(
    command: Command, cluster: Cluster, place: Engines, store: Store
) -> None:
    registry = {"place__gke__image": "null", "place__gke__registry": "us-docker.pkg.dev/project/repository"}
    ours = partial(command, **registry)
    cluster.refused = FatalError("its build ended as FAILURE")
    assert ours("run").err.splitlines()[-1] == "error: its build ended as FAILURE"
    assert place.calls == 0
    assert not [*store.list("jobs"), *store.list("bases")]
    cluster.refused = None
    dry = dict(line.split()[:2] for line in ours("run", "--dry-run").out.splitlines()[1:-1])
    assert (dry["sft"], dry["image"], dry["generate_pairs"]) == ("cached", "to", "to")
    assert cluster.registry == set()
    assert ours("run", "--until", "train").code == 0
    assert cluster.jobs[0][2] == IMAGE
    assert statuses(ours("report", "--json"))["image"] == "ran"
    assert ours("run", "--until", "train").code == 0
    assert set(statuses(ours("report", "--json")).values()) == {"cached"}


def test_a_manifest_that_is_not_there_is_said_before_anything_is_paid_for(command: Command, place: Engines) -> None:
    ended = command("run", place__gke__manifest="elsewhere/train-job.yaml")
    assert ended.err.splitlines()[-1] == (
        "error: elsewhere/train-job.yaml: No such file or directory; see place.gke.manifest"
    )
    assert place.calls == 0


def test_prune_deletes_from_the_bucket_what_nothing_needs_and_fetches_nothing_for_it(
    command: Command, store: Store, gcs: FakeGCS, tmp_path: Path
) -> None:
    command("run")
    bases = contents(store, "bases")
    orphan = orphaned(store, tmp_path)
    store.write("bases/another/COMPLETE", b"{}")
    store.write("bases/another/model.safetensors", b"weights")
    kept = set(store.list())
    gcs.requests.clear()
    ended = command("prune", "--yes")
    listed = {line.partition(" MB  ")[2] for line in ended.out.splitlines()}
    assert {orphan.key, "bases/another"} <= listed
    assert gcs.requests.count("download") < 40  # manifests, and no artifact's files
    left = set(store.list())
    assert {key for key in kept - left if not key.startswith("journal/")} == {
        *(key for key in kept if key.startswith((orphan.key, "bases/another/", "jobs/")))
    }
    assert contents(store, "bases") == bases
    assert command("run").code == 0


def orphaned(store: Store, folder: Path) -> Artifact:
    (folder / "nobody's").write_text("text")
    return Workshop(store, folder / "work").adopt(Stage("pairs", 1), {"train.jsonl": folder / "nobody's"})


def test_training_alone_goes_the_same_way(command: Command, cluster: Cluster, place: Engines, tmp_path: Path) -> None:
    pair = {
        "prompt": [{"role": "user", "content": "[ANNA] Well?"}],
        "chosen": [{"role": "assistant", "content": "[BEN] Yes."}],
        "rejected": [{"role": "assistant", "content": "[BEN] No."}],
    }
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text(json.dumps(pair))
    adapter, base = save_adapter(tmp_path / "mine", START), save_base(tmp_path / "base")
    ended = command(
        "train", "--data", str(tmp_path), "--adapter", str(adapter), "--base", str(base), "--out", str(tmp_path / "out")
    )
    assert ended.code == 0, ended.err
    assert len(cluster.jobs) == 1
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
