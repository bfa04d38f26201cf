"""The real training through Modal's fake: the stage itself, taken away in mid-training, ends in the same adapter."""

from pathlib import Path

import pytest

from nothing_gpt.adapters import CONFIG, WEIGHTS, adapter_digest
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.bases import known_base
from nothing_gpt.config.place import ModalSettings
from nothing_gpt.dpo.train import train
from nothing_gpt.jobs.local import run_module
from nothing_gpt.jobs.modal import modal_run
from nothing_gpt.processes import Run
from nothing_gpt.store import open_store
from tests.chain import tiny
from tests.jobs.modal.fake_modal import Cloud

pytestmark = [
    pytest.mark.chain,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The train function is executing locally:UserWarning"),
]


def trained(model: Path, folder: Path, run: Run) -> tuple[Workshop, Artifact]:
    workshop = Workshop(open_store(str(folder / "store")), folder / "work")
    pairs = workshop.adopt(Stage("pairs", 1), {name: model / "data" / name for name in ("train.jsonl", "val.jsonl")})
    start = workshop.adopt(Stage("sft", 1), {name: model / "sft" / name for name in (CONFIG, WEIGHTS)})
    base = known_base(str(model / "base"), None)
    return workshop, train(workshop, pairs, start, base, tiny.SETTINGS, run)


def test_a_training_on_modal_that_was_preempted_ends_as_one_on_this_machine(
    tmp_path: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    model = tiny.make(tmp_path / "tiny")
    here, local = trained(model, tmp_path / "here", run_module)
    cloud.preempt_at = f'"label": "train", "total": {tiny.STEPS}, "done": 0'
    there, remote = trained(model, tmp_path / "there", modal_run(ModalSettings()))
    assert (cloud.containers, len(cloud.calls)) == (2, 1)
    assert any("going on from checkpoint-" in output for output in cloud.calls["fc-1"].output)
    assert remote.fingerprint == local.fingerprint
    weights = [adapter_digest(workshop.folder(made)) for workshop, made in ((here, local), (there, remote))]
    assert weights[0] == weights[1]
