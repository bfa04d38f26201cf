"""Checkpoints: only a whole one may be gone on from, and a damaged one leads to the next older."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nothing_gpt.checkpoints import newest_whole


def write_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    save_file({"lora_A": np.ones((2, 2))}, checkpoint / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with zipfile.ZipFile(checkpoint / name, "w") as archive:
            archive.writestr("data", b"0" * 100)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return checkpoint


def cut(name: str) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        path = checkpoint / name
        path.write_bytes(path.read_bytes()[:-20])

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).unlink()


def test_the_newest_is_taken_by_its_step_and_not_by_its_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 9)
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-9"
    write_checkpoint(tmp_path, 10)
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize(
    "damage",
    [
        remove("trainer_state.json"),
        cut("trainer_state.json"),
        remove("adapter_model.safetensors"),
        cut("adapter_model.safetensors"),
        remove("optimizer.pt"),
        cut("optimizer.pt"),
        remove("scheduler.pt"),
        cut("scheduler.pt"),
        remove("rng_state.pth"),
        cut("rng_state.pth"),
    ],
)
def test_a_damaged_one_leads_to_the_next_older(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    older = write_checkpoint(tmp_path, 5)
    damage(write_checkpoint(tmp_path, 10))
    assert newest_whole(tmp_path) == older


def test_without_a_whole_one_training_starts_anew(tmp_path: Path) -> None:
    remove("optimizer.pt")(write_checkpoint(tmp_path, 5))
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_whole(tmp_path) is None
    assert newest_whole(tmp_path / "missing") is None
