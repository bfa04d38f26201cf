"""A training that is ordered on one machine and done on another: here a process, as a Job's container runs it, with a
bucket as its only link to what ordered it. It is stopped once on its way.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from nothing_gpt.adapters import CONFIG, WEIGHTS, adapter_digest
from nothing_gpt.artifacts import Artifact, Stage, Workshop, live_leases
from nothing_gpt.bases import Base, known_base
from nothing_gpt.dpo.order import STAGE, train_elsewhere
from nothing_gpt.store import open_store
from tests import fake_gcs
from tests.chain import tiny
from tests.conftest import REPOSITORY
from tests.fake_gcs import FakeGCS

pytestmark = [pytest.mark.chain, pytest.mark.timeout(600)]

BUCKET = "gs://bucket/runs"
STOPPED_AT = 6
"""A step after which no checkpoint is due."""
STOPPED = f"""
import os, signal
from nothing_gpt.dpo.train import main
from nothing_gpt.trainers import ShowSteps

def stop(self, args, state, control, **_):
    if state.global_step == {STOPPED_AT}:
        os.kill(os.getpid(), signal.SIGTERM)

ShowSteps.on_step_end = stop
main()
"""


@dataclass
class Pods:
    """The pods of one Job: each has a disk of its own, and a time in which it is stopped or not."""

    folder: Path
    gcs: FakeGCS
    busy: int = 0
    """How often the bucket was too busy while the artifact was on its way."""
    ended: list["subprocess.CompletedProcess[str]"] = field(default_factory=list)

    def run(self, fingerprint: str, *program: str) -> "subprocess.CompletedProcess[str]":
        command = [*program, "--store", BUCKET, "--job", fingerprint, "--work", self.folder / f"pod-{len(self.ended)}"]
        environment = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}
        self.ended.append(
            subprocess.run(
                [sys.executable, *command], env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300
            )
        )
        return self.ended[-1]

    def __call__(self, fingerprint: str) -> None:
        """Until one ends well, as the cluster does; the first is told to stop."""
        self.run(fingerprint, "-c", STOPPED)
        self.gcs.faults["insert"] = [partial(self.answer, f"runs/{STAGE.name}/{fingerprint}/")] * 1000
        assert self.run(fingerprint, "-m", "nothing_gpt.dpo.train").returncode == 0, self.ended[-1].stderr

    def answer(self, artifact: str) -> None:
        if self.busy < 2 and any(name.startswith(artifact) for name in self.gcs.objects):
            self.busy += 1
            raise fake_gcs.Refused(503, "too busy")


@dataclass
class Job:
    """One training by order: the artifact, the pods that made it, and the workshop of the machine that ordered it."""

    gcs: FakeGCS
    flow: Workshop
    model: Path
    base: Base
    pods: Pods
    inputs: dict[str, Artifact]

    def order(self, **settings: object) -> Artifact:
        chosen = tiny.SETTINGS.model_copy(update=settings)
        return train_elsewhere(self.flow, **self.inputs, base=self.base, settings=chosen, ask=self.pods)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("job")
    model = tiny.make(folder / "model")
    with fake_gcs.serving(folder / "gcs") as gcs, pytest.MonkeyPatch.context() as patch:
        for name, value in {"STORAGE_EMULATOR_HOST": gcs.url, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}.items():
            patch.setenv(name, value)
        patch.delenv("WANDB_API_KEY", raising=False)
        flow = Workshop(open_store(BUCKET, cache=folder / "flow" / "cache"), folder / "flow" / "work")
        files = {name: model / "sft" / name for name in (CONFIG, WEIGHTS)}
        data = {name: model / "data" / name for name in ("train.jsonl", "val.jsonl")}
        inputs = {"pairs": flow.adopt(Stage("pairs", 1), data), "adapter": flow.adopt(Stage("sft", 1), files)}
        base = known_base(str(model / "base"), None)
        yield Job(gcs, flow, model, base, Pods(folder, gcs), inputs)


@pytest.fixture(scope="module")
def trained(job: Job) -> Artifact:
    return job.order()


def test_a_pod_that_is_told_to_stop_asks_for_another_and_leaves_no_lease(job: Job, trained: Artifact) -> None:
    first = job.pods.ended[0]
    assert first.returncode == 75, first.stderr
    assert f"stopped at step {STOPPED_AT} of {tiny.STEPS} with a checkpoint saved" in first.stderr
    assert live_leases(job.flow.store) == []


def test_the_next_pod_goes_on_and_what_comes_of_it_is_what_an_undisturbed_training_gives(
    job: Job, trained: Artifact, tmp_path: Path
) -> None:
    assert f"going on from checkpoint-{STOPPED_AT}" in job.pods.ended[1].stderr
    undisturbed = Workshop(open_store(str(tmp_path / "store")), tmp_path / "work")
    from nothing_gpt.dpo.train import train
    from nothing_gpt.jobs.local import run_module

    adopted = {
        name: undisturbed.adopt(Stage(artifact.stage, 1), {file.name: file for file in files})
        for name, artifact in job.inputs.items()
        if (files := [path for path in job.flow.folder(artifact).iterdir() if path.name != "manifest.json"])
    }
    local = train(undisturbed, **adopted, base=job.base, settings=tiny.SETTINGS, run=run_module)
    assert local.fingerprint == trained.fingerprint
    assert adapter_digest(undisturbed.folder(local)) == adapter_digest(job.flow.folder(trained))


def test_the_bucket_then_holds_artifact_order_and_base_and_no_checkpoints(job: Job, trained: Artifact) -> None:
    names = [name.removeprefix("runs/") for name in job.gcs.objects]
    assert not [name for name in names if name.startswith(("checkpoints/", "leases/"))]
    assert f"jobs/{trained.fingerprint}/order.json" in names
    assert f"bases/{job.base.identity}/COMPLETE" in names


def test_a_bucket_that_was_too_busy_while_the_artifact_went_there_has_it_whole(job: Job, trained: Artifact) -> None:
    assert job.pods.busy == 2
    assert job.flow.find(STAGE.name, trained.fingerprint) is not None


def test_a_pod_that_finds_the_artifact_made_ends_well_at_once(job: Job, trained: Artifact) -> None:
    again = job.pods.run(trained.fingerprint, "-m", "nothing_gpt.dpo.train")
    assert again.returncode == 0, again.stderr
    assert "train:" not in again.stderr


def test_what_is_wrong_is_one_line_and_exit_code_1(job: Job) -> None:
    ended = job.pods.run("0123456789abcdef", "-m", "nothing_gpt.dpo.train")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: {BUCKET}/jobs/0123456789abcdef/order.json: no such order; ")
