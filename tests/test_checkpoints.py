"""Checkpoints: only a whole one may be gone on from, of disk or store; a damaged one leads to the next older.

Each damage is one that was seen to crash a resumed training, to restart it silently, or to let it silently diverge.
"""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nothing_gpt.checkpoints import (
    COMPLETE,
    Checkpoints,
    alone,
    fetch_folder,
    keep_folder,
    newest_whole,
    seal,
)
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.store import FolderStore, Store


def write_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "ref").mkdir(parents=True)
    save_file({"lora_A": np.full((2, 2), step, np.float32)}, checkpoint / "adapter_model.safetensors")
    save_file({"lora_A": np.ones((2, 2), np.float32)}, checkpoint / "ref" / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).write_bytes(b"1" * 100)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    seal(checkpoint)
    return checkpoint


def cut(name: str) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        path = checkpoint / name
        path.write_bytes(path.read_bytes()[:-20])

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        (checkpoint / name).write_text(text)

    return damage


def zero(name: str) -> Callable[[Path], None]:
    """Blocks that a power failure left empty: the file's length is right, and so may be its header."""

    def damage(checkpoint: Path) -> None:
        path = checkpoint / name
        data = path.read_bytes()
        path.write_bytes(data[:-10] + bytes(10))

    return damage


def not_finite(checkpoint: Path) -> None:
    save_file({"lora_A": np.full((2, 2), np.nan, np.float32)}, checkpoint / "adapter_model.safetensors")
    seal(checkpoint)


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
        remove("ref/adapter_model.safetensors"),
        cut("ref/adapter_model.safetensors"),
        zero("adapter_model.safetensors"),
        zero("ref/adapter_model.safetensors"),
        zero("optimizer.pt"),
        zero("scheduler.pt"),
        zero("rng_state.pth"),
        write("trainer_state.json", "{}"),
        write("trainer_state.json", "null"),
        remove(COMPLETE),
        cut(COMPLETE),
        write(COMPLETE, "null"),
        not_finite,
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


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def other_disk(tmp_path: Path) -> Path:
    """The disk of another machine, which goes on after a preemption."""
    return tmp_path / "other"


def test_another_machine_goes_on_from_the_store_s_newest(disk: Path, other_disk: Path, store: Store) -> None:
    here = Checkpoints(disk, store, "run-1")
    for step in (5, 10):
        here.keep(write_checkpoint(disk, step))
    assert Checkpoints(other_disk, store, "run-1").newest() == other_disk / "checkpoint-10"
    assert newest_whole(other_disk) == other_disk / "checkpoint-10"


def test_another_run_never_goes_on_from_it(disk: Path, other_disk: Path, store: Store) -> None:
    Checkpoints(disk, store, "run-1").keep(write_checkpoint(disk, 5))
    assert Checkpoints(other_disk, store, "run-2").newest() is None


def test_the_newer_of_disk_and_store_is_taken(disk: Path, store: Store) -> None:
    checkpoints = Checkpoints(disk, store, "run-1")
    checkpoints.keep(write_checkpoint(disk, 5))
    newer = write_checkpoint(disk, 10)
    assert checkpoints.newest() == newer
    cut("optimizer.pt")(newer)
    assert checkpoints.newest() == disk / "checkpoint-5"
    checkpoints.keep(write_checkpoint(disk, 15))
    cut("optimizer.pt")(disk / "checkpoint-15")
    assert checkpoints.newest() == disk / "checkpoint-15"  # its copy is whole
    assert newest_whole(disk) == disk / "checkpoint-15"


@pytest.mark.parametrize("damaged", [COMPLETE, "optimizer.pt", "ref/adapter_model.safetensors"])
@pytest.mark.parametrize("how", [remove, cut])
def test_a_copy_that_is_not_complete_leads_to_the_next_older(
    disk: Path, other_disk: Path, store: FolderStore, damaged: str, how: Callable[[str], Callable[[Path], None]]
) -> None:
    checkpoints = Checkpoints(disk, store, "run-1")
    for step in (5, 10):
        checkpoints.keep(write_checkpoint(disk, step))
    how(damaged)(store.root / "checkpoints" / "run-1" / "checkpoint-10")
    assert Checkpoints(other_disk, store, "run-1").newest() == other_disk / "checkpoint-5"


def test_two_copies_are_kept_and_none_of_a_finished_run(disk: Path, store: Store) -> None:
    checkpoints = Checkpoints(disk, store, "run-1")
    for step in (5, 10, 100):
        checkpoints.keep(write_checkpoint(disk, step))
    assert {key.split("/")[2] for key in store.list("checkpoints/run-1")} == {"checkpoint-10", "checkpoint-100"}
    checkpoints.clear()
    assert list(store.list("checkpoints")) == []


@pytest.mark.parametrize("error", [FatalError("no room"), OSError(errno.EIO, "no room")])
def test_a_store_that_fails_is_said_and_does_not_stop_training(
    disk: Path,
    store: FolderStore,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(store, "upload", full)
    Checkpoints(disk, store, "run-1").keep(write_checkpoint(disk, 5))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: checkpoint-5 is on this machine only: ")
    assert "no room" in line
    assert newest_whole(disk) == disk / "checkpoint-5"


def test_a_copy_that_is_replaced_is_none_until_it_is_whole(
    disk: Path, other_disk: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(disk, 5)
    keep_folder(store, "copy", checkpoint)
    monkeypatch.setattr(store, "upload", lambda *_: (_ for _ in ()).throw(FatalError("killed")))
    with pytest.raises(FatalError):
        keep_folder(store, "copy", checkpoint)
    assert not fetch_folder(store, "copy", other_disk)
    assert not other_disk.exists()


def test_two_trainings_are_never_at_work_in_one_folder(tmp_path: Path) -> None:
    with alone(tmp_path / "work"):
        with pytest.raises(TransientError, match="another training is at work in"), alone(tmp_path / "work"):
            pytest.fail("two are at work")
        with alone(tmp_path / "other"):
            pass
    with alone(tmp_path / "work"):
        pass


@pytest.fixture
def unreadable(disk: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], Checkpoints]:
    """A store with a newer checkpoint than the disk, that cannot be fetched."""

    def unreadable(error: Exception) -> Checkpoints:
        checkpoints = Checkpoints(disk, store, "run-1")
        for step in (5, 10):
            checkpoints.keep(write_checkpoint(disk, step))
        remove("optimizer.pt")(disk / "checkpoint-10")

        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(store, "fetch", fail)
        return checkpoints

    return unreadable


ERRORS = [TransientError("reset"), FatalError("forbidden"), OSError(errno.EIO, "Input/output error")]


@pytest.mark.parametrize("error", ERRORS)
def test_a_store_that_cannot_be_read_leaves_what_is_here(
    disk: Path,
    unreadable: Callable[[Exception], Checkpoints],
    error: Exception,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert unreadable(error).newest() == disk / "checkpoint-5"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"train: the store's checkpoints cannot be had ({error}); checkpoint-5 is this machine's newest"


@pytest.mark.parametrize("error", ERRORS)
def test_a_store_that_cannot_be_read_is_no_reason_to_begin_anew(
    disk: Path, unreadable: Callable[[Exception], Checkpoints], error: Exception
) -> None:
    checkpoints = unreadable(error)
    remove(COMPLETE)(disk / "checkpoint-5")
    with pytest.raises((TransientError, FatalError), match=str(error).replace("[", r"\[")) as raised:
        checkpoints.newest()
    assert isinstance(raised.value, FatalError) == isinstance(error, FatalError)
