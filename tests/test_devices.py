"""Trainings at once on one machine take different GPUs."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from nothing_gpt import devices
from nothing_gpt.devices import VISIBLE, taken


@pytest.fixture(autouse=True)
def four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Four GPUs that nobody holds."""
    monkeypatch.setattr(devices, "LOCKS", tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv(VISIBLE, raising=False)
    return monkeypatch


def takes(count: int, seen: str | None, patch: pytest.MonkeyPatch) -> AbstractContextManager[None]:
    patch.delenv(VISIBLE, raising=False)
    if seen is not None:
        patch.setenv(VISIBLE, seen)
    return taken(count)


def test_each_takes_what_no_other_has(four: pytest.MonkeyPatch) -> None:
    with takes(1, None, four):
        assert os.environ[VISIBLE] == "0"
        with takes(2, None, four):
            assert os.environ[VISIBLE] == "1,2"
            with takes(1, "2,3", four):
                assert os.environ[VISIBLE] == "3"
    with takes(1, None, four):
        assert os.environ[VISIBLE] == "0", "let go"


def test_where_free_ones_do_not_suffice_it_shares(four: pytest.MonkeyPatch) -> None:
    with takes(3, None, four), takes(2, None, four):
        assert os.environ[VISIBLE] == "3,0"


def test_one_that_another_user_holds_is_not_free(four: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nothing-gpt-gpu-0.lock").mkdir()  # cannot be opened
    with takes(1, None, four):
        assert os.environ[VISIBLE] == "1"


@pytest.mark.parametrize("seen", [None, ""])
def test_without_a_gpu_nothing_changes(four: pytest.MonkeyPatch, seen: str | None) -> None:
    four.setattr("torch.cuda.device_count", lambda: 0)
    with takes(1, seen, four):
        assert os.environ.get(VISIBLE) == seen
