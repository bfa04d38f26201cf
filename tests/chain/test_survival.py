"""A training that is interrupted, wherever that is: how it ends, and that it goes on as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.adapters import CONFIG, validate_adapter
from nothing_gpt.dpo.recipe import METRICS, STEPS, Training, recipe
from nothing_gpt.errors import TransientError
from nothing_gpt.records import read_jsonl
from tests.chain import tiny
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.chain, pytest.mark.timeout(600), pytest.mark.usefixtures("alone", "deaf")]

ASKED = """
import functools, importlib, os, runpy, signal, sys

kind, name = sys.argv.pop(1).split()

def ask():
    os.kill(os.getpid(), signal.SIGTERM)

class Importing:
    def find_spec(self, module, *_):
        if module == name:
            ask()

if kind == "import":
    sys.meta_path.insert(0, Importing())
else:
    module, _, function = name.rpartition(".")
    module = importlib.import_module(module)
    real = getattr(module, function)

    @functools.wraps(real)
    def asking(*arguments, **options):
        ask()
        result = real(*arguments, **options)
        ask()
        return result

    setattr(module, function, asking)
runpy.run_module("nothing_gpt.dpo.train", run_name="__main__")
"""
"""The program, asked to stop while it imports a module, or before and after it calls a function."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose adapter has dropout."""
    model = tiny.make(tmp_path_factory.mktemp("tiny"))
    config = json.loads((model / "sft" / CONFIG).read_text())
    (model / "sft" / CONFIG).write_text(json.dumps(config | {"lora_dropout": 0.2}))
    return model


@pytest.fixture(scope="module", autouse=True)
def dropout() -> Any:
    """TRL turns it off. With it, a resumed run ends where it should only if the dice fall as they would have."""
    from torch.nn import Dropout

    from nothing_gpt.trainers import PreferenceTrainer

    step = PreferenceTrainer.training_step

    def with_dropout(self: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        for module in model.modules():
            if isinstance(module, Dropout):
                module.p = 0.2
        return step(self, model, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreferenceTrainer, "training_step", with_dropout)
        yield


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Figures of a run that nothing disturbs."""
    before = signal.getsignal(signal.SIGTERM)
    training = tiny.training(model, tmp_path_factory.mktemp("undisturbed"))
    recipe(training)
    signal.signal(signal.SIGTERM, before)
    return figures(training)


def figures(training: Training) -> dict[str, float]:
    return json.loads((training.output / METRICS).read_text())


# A resumed run ends where the undisturbed one does.


class Killed(BaseException):
    """As SIGKILL: nothing is saved."""


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill() -> None:
    raise Killed


def interrupt(training: Training, interruptions: dict[int, Callable[[], None]], patch: pytest.MonkeyPatch) -> None:
    """Trains until the steps at which something comes, each once, and goes on."""
    from nothing_gpt.trainers import PreferenceTrainer

    step = PreferenceTrainer.training_step
    left = dict(interruptions)

    def interrupted(self: Any, *arguments: Any, **options: Any) -> Any:
        loss = step(self, *arguments, **options)
        left.pop(self.state.global_step + 1, lambda: None)()  # in mid-step: before the last of its micro-batches
        return loss

    patch.setattr(PreferenceTrainer, "training_step", interrupted)
    for _ in interruptions:
        with pytest.raises((TransientError, Killed)):
            recipe(training)
        assert not training.output.exists()
    assert not left
    recipe(training)


@pytest.mark.parametrize(
    "interruptions",
    [
        {1: ask, 11: ask},
        {4: ask, 9: kill},  # 4 is saved anyway, and 9 is gone on from 8
        {2: kill, 5: ask, 12: ask},  # anew; in mid-epoch; the last
    ],
    ids=lambda steps: ", ".join(f"{how.__name__} in step {step}" for step, how in steps.items()),
)
def test_interrupted_at_any_step_it_ends_where_the_undisturbed_run_does(
    fresh: Training,
    undisturbed: dict[str, float],
    interruptions: dict[int, Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupt(fresh, interruptions, monkeypatch)
    ours = figures(fresh)
    for name in ("eval_loss", "eval_margin", "train_loss", "last_train_loss", "step0_loss", "lowest_eval_loss"):
        assert ours[name] == pytest.approx(undisturbed[name], abs=1e-4), name
    assert ours["steps"] == tiny.STEPS


def test_asked_in_an_evaluation_it_leaves_it_at_once_and_makes_up_for_it_later(
    fresh: Training, undisturbed: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nothing_gpt.trainers import PreferenceTrainer

    step = PreferenceTrainer.prediction_step
    moments = (8, tiny.STEPS)
    left = list(moments)
    batches: Counter[int] = Counter()

    def asked(self: Any, *arguments: Any, **options: Any) -> Any:
        batches[self.state.global_step] += 1
        if left and self.state.global_step == left[0]:
            left.pop(0)
            ask()
        return step(self, *arguments, **options)

    monkeypatch.setattr(PreferenceTrainer, "prediction_step", asked)
    for stopped_at in moments:
        with pytest.raises(TransientError, match=f"stopped at step {stopped_at} of {tiny.STEPS} with a checkpoint"):
            recipe(fresh)
    recipe(fresh)
    whole = batches[4]
    assert (batches[8], batches[tiny.STEPS]) == (1 + whole, 1 + whole)
    for name in ("eval_loss", "eval_margin", "train_loss", "last_train_loss", "lowest_eval_loss"):
        assert figures(fresh)[name] == pytest.approx(undisturbed[name], abs=1e-4), name
    logged = [row["step"] for _, row in read_jsonl(fresh.output / STEPS) if "eval_loss" in row]
    assert logged == [0, 4, 8, tiny.STEPS]


# It can be asked at any moment.


def program(training: Training, asked: str) -> "subprocess.CompletedProcess[str]":
    settings = training.output.with_name("settings.json")
    settings.write_text(json.dumps({"training": training.settings.model_dump()}))
    places = {"SFT_ADAPTER_PATH": training.start, "ADAPTER_PATH": training.output, "DPO_DATA_PATH": training.data}
    return subprocess.run(
        [sys.executable, "-c", ASKED, asked, "--settings", str(settings), "--work", str(training.work.parent)],
        env=os.environ | {name: str(path) for name, path in places.items()} | {"BASE_MODEL": training.base},
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    "moment",
    [
        "import nothing_gpt.config",
        "call nothing_gpt.training_data.tokenize",
        "call nothing_gpt.policy.load_policy",
        "call nothing_gpt.training_figures.start_figures",
        "call nothing_gpt.training_figures.final_figures",
    ],
)
def test_asked_to_stop_outside_of_the_training_itself_it_does_so_at_once(fresh: Training, moment: str) -> None:
    ended = program(fresh, moment)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (75, "error: asked to stop; run again to go on")
    assert "Traceback" not in ended.stderr
    assert not fresh.output.exists()


def test_asked_to_stop_when_it_publishes_it_ends_with_a_whole_adapter(fresh: Training) -> None:
    ended = program(fresh, "call nothing_gpt.adapters.publish")
    assert ended.returncode == 0, ended.stderr
    assert validate_adapter(fresh.output).rank == 4
    assert (fresh.output / METRICS).is_file()
    assert not fresh.work.exists()
