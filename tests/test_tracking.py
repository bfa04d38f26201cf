"""Where a training can be watched. W&B itself is replaced here; its real files are looked at in `tests/chain`."""

import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nothing_gpt.tracking import Tracking, _Guarded


class FakeWandb(ModuleType):
    """Notes what it is asked; `down` makes it unreachable."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.asked: list[dict[str, Any]] = []
        self.linked: list[tuple[str, str]] = []
        self.ended: list[int] = []
        self.down = self.breaks = False
        self.Settings = SimpleNamespace

    def init(self, **options: Any) -> Any:
        self.asked.append(options)
        if self.down and options["mode"] == "online":
            raise TimeoutError("no route to W&B\n  at line 7")
        return SimpleNamespace(
            url="https://wandb.ai/me/nothing-gpt/runs/1",
            finish=lambda exit_code: self.note(self.ended, exit_code),
            use_artifact=lambda artifact: self.note(self.linked, ("used", artifact.name)),
            log_artifact=lambda artifact: self.note(self.linked, ("made", artifact.name)),
        )

    def note(self, notes: list[Any], what: Any) -> None:
        if self.breaks:
            raise ConnectionError("502 bad gateway")
        notes.append(what)

    def Artifact(self, name: str, type: str) -> Any:
        return SimpleNamespace(name=name, add_file=lambda file: Path(file).read_bytes())

    def teardown(self) -> None:
        pass

    @property
    def modes(self) -> list[str]:
        return [asked["mode"] for asked in self.asked]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return fake


@pytest.fixture
def tracking(tmp_path: Path) -> Tracking:
    return Tracking(tmp_path / "tracking", "0123456789abcdef", ["sigmoid", "x" * 99], {"beta": 0.1})


def test_without_a_key_its_files_are_written_for_later(wandb: FakeWandb, tracking: Tracking) -> None:
    with tracking:
        pass
    (asked,) = wandb.asked
    assert (asked["mode"], asked["project"], asked["config"]) == ("offline", "nothing-gpt", {"beta": 0.1})
    assert wandb.ended == [0]


def test_a_run_is_named_by_its_fingerprint_and_goes_on_in_the_same_place(wandb: FakeWandb, tracking: Tracking) -> None:
    with tracking:
        pass
    (asked,) = wandb.asked
    assert (asked["name"], asked["id"], asked["resume"]) == ("dpo-01234567", "0123456789abcdef", "allow")
    assert asked["tags"] == ["sigmoid", "x" * 64]


def test_with_a_key_data_and_adapter_are_linked_to_the_run(
    wandb: FakeWandb, tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "key")
    (tmp_path / "train.jsonl").touch()
    with tracking:
        tracking.used("pairs", [tmp_path / "train.jsonl"])
        tracking.made("adapter", [tmp_path / "train.jsonl"])
    assert wandb.modes == ["online"]
    assert tracking.url == "https://wandb.ai/me/nothing-gpt/runs/1"
    assert wandb.linked == [("used", "pairs-0123456789abcdef"), ("made", "adapter-0123456789abcdef")]


def test_a_service_that_cannot_be_reached_stops_nothing(
    wandb: FakeWandb, tracking: Tracking, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "key")
    wandb.down = True
    with tracking:
        tracking.used("pairs", [])
    assert wandb.modes == ["online", "offline"]
    assert tracking.url is None
    assert wandb.linked == []
    assert capsys.readouterr().err == "train: W&B cannot be used online (no route to W&B)\n"


def test_it_can_be_turned_off(wandb: FakeWandb, tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with tracking:
        tracking.made("adapter", [])
    assert wandb.asked == []


def test_a_training_that_fails_is_marked_so(wandb: FakeWandb, tracking: Tracking) -> None:
    with pytest.raises(RuntimeError), tracking:
        raise RuntimeError
    assert wandb.ended == [1]


def test_a_service_that_breaks_later_stops_nothing_and_is_said_once(
    wandb: FakeWandb, tracking: Tracking, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "key")
    with tracking:
        wandb.breaks = True
        tracking.used("pairs", [])
        tracking.made("adapter", [])
    assert capsys.readouterr().err == "train: cannot be watched as it should (502 bad gateway); training goes on\n"


def test_a_callback_that_breaks_stops_nothing_and_is_asked_again(
    tracking: Tracking, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[int] = []

    def on_log(step: int) -> None:
        told.append(step)
        raise OSError("no space")

    both = _Guarded([SimpleNamespace(on_log=on_log), SimpleNamespace(on_log=told.append)], tracking._guarded)
    both.on_log(1)
    both.on_log(2)
    assert told == [1, 1, 2, 2]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_cannot_be_copied_beside_the_adapter_stops_nothing(
    wandb: FakeWandb, tracking: Tracking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracking:
        pass
    shutil.rmtree(tmp_path / "tracking")
    tracking.leave(tmp_path / "out" / "tracking")
    assert "cannot be watched as it should" in capsys.readouterr().err
