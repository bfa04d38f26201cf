"""`nothing-gpt train`: the stage alone, on any pairs and adapter. The trainer is a fake; TRL runs in `tests/chain`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.place import Place
from tasks.train import train
from tests.fake_vllm import save_adapter, save_base
from tests.flows.conftest import Call, Ended
from tests.flows.fakes import METRICS, START, Trainer

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(300)]
pytest.importorskip("torch")

PAIR = {
    "prompt": [{"role": "user", "content": "[ANNA] Well?"}],
    "chosen": [{"role": "assistant", "content": "[BEN] Yes."}],
    "rejected": [{"role": "assistant", "content": "[BEN] No."}],
}


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(Place, "run", staticmethod(trainer))
    monkeypatch.setattr(train, "retry_delay_seconds", [0.01])
    return trainer


@pytest.fixture
def alone(program: Call, tmp_path: Path, prefect: None) -> Call:
    """`nothing-gpt train` on pairs, an adapter and a base model."""
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text(json.dumps(PAIR))
    given = [
        "--data",
        tmp_path,
        "--adapter",
        save_adapter(tmp_path / "sft", START),
        "--base",
        save_base(tmp_path / "base"),
    ]

    def run(*more: Any) -> Ended:
        return program("train", *map(str, [*given, *more]))

    return run


def test_it_trains_shows_the_figures_and_copies_the_adapter_where_it_is_wanted(
    alone: Call, trainer: Trainer, tmp_path: Path
) -> None:
    ended = alone("--out", str(tmp_path / "out"))
    assert ended.code == 0, ended.err
    assert "Validation accuracy" in ended.out
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == METRICS
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_the_same_again_is_answered_from_the_store_and_another_beta_is_not(alone: Call, trainer: Trainer) -> None:
    assert (alone().code, trainer.runs) == (0, 1)
    again = alone()
    assert (again.code, trainer.runs) == (0, 1)
    assert "cached" in again.out
    assert (alone("--set", "training.beta=0.2").code, trainer.runs) == (0, 2)


def test_bad_pairs_and_a_bad_base_end_it_with_one_clear_line(alone: Call, trainer: Trainer, tmp_path: Path) -> None:
    assert "base model some/base: a hub name, behind which a model may change" in alone("--base", "some/base").error
    (tmp_path / "val.jsonl").write_text("")
    assert "val.jsonl: holds no pairs" in alone().error
    assert trainer.runs == 0


def test_an_adapter_that_is_there_already_is_not_written_over(alone: Call, trainer: Trainer, tmp_path: Path) -> None:
    assert "exists already and may be served" in alone("--out", str(tmp_path)).error


def test_what_cannot_come_to_a_good_end_is_refused_before_training(
    alone: Call, trainer: Trainer, tmp_path: Path
) -> None:
    assert "train.jsonl is a file; give the path of a folder" in alone("--out", tmp_path / "train.jsonl" / "out").error
    assert "training alone starts from the adapter" in alone("--set", "training.starting_version=1").error
    assert trainer.runs == 0
