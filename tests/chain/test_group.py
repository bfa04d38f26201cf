"""Training as two processes on the CPU: the losses of one, and one that is killed.

One undisturbed run in one process is what all are compared with. Its pairs fill neither the last update of an epoch nor
the last batch of an evaluation.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nothing_gpt.adapters import MARGINS, METRICS
from nothing_gpt.dpo.recipe import Training, recipe
from nothing_gpt.errors import TransientError
from nothing_gpt.jobs.local import run_module
from nothing_gpt.processes import Child, free_port
from nothing_gpt.ranks import ENDPOINT, INDEX
from nothing_gpt.records import read_jsonl
from nothing_gpt.store import open_store
from tests.chain import tiny
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.chain, pytest.mark.timeout(600), pytest.mark.usefixtures("alone")]

SHAPE = {"gradient_accumulation_steps": 4, "save_steps": 2, "eval_steps": 3, "logging_steps": 2}
STEPS = 6
"""21 pairs, 8 an update, 2 epochs: the last update of each has 5, in micro-batches of 2, 2 and 1."""
ENDED_AT = 3
"""A step after which one rank ends; the last checkpoint is that of step 2."""
PROGRAM = f"""
import os, runpy, signal, sys
from nothing_gpt import launcher
from nothing_gpt.trainers import Survive

def end(self, args, state, control, **_):
    marker = os.environ["ONCE"]
    if os.environ["RANK"] == "1" and state.global_step == {ENDED_AT} and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid() if os.environ["WHO"] == "rank" else os.getppid(), int(os.environ["SIGNAL"]))

if "TORCHELASTIC_RUN_ID" in os.environ:
    Survive.on_step_begin = end
else:  # the agent: its ranks are this program too
    launch = launcher.launch
    launcher.launch = lambda command, *group: launch([sys.executable, "-u", *command[4:]], *group)
    sys.argv.insert(0, __file__)
from nothing_gpt.dpo.train import main
main()
"""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory, alone: None) -> Path:
    """A model with pairs that leave a rest wherever they are shared out."""
    folder = tiny.make(tmp_path_factory.mktemp("uneven"))
    for name, count in (("train.jsonl", 21), ("val.jsonl", 7)):
        file = folder / "data" / name
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:count]))
    return folder


@pytest.fixture(scope="module")
def one(uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of one process."""
    before = signal.getsignal(signal.SIGTERM)
    training = tiny.training(uneven, tmp_path_factory.mktemp("one"), **SHAPE)
    recipe(training)
    signal.signal(signal.SIGTERM, before)
    return training.output


def check_equal(ours: Path, theirs: Path) -> None:
    """That two trainings came to the same: figures, and the margin of each pair."""
    mine, other = (json.loads((adapter / METRICS).read_text()) for adapter in (ours, theirs))
    assert mine["steps"] == other["steps"] == STEPS
    for name in ("step0_loss", "train_loss", "last_train_loss", "eval_loss", "lowest_eval_loss", "eval_margin"):
        assert mine[name] == pytest.approx(other[name], abs=1e-4), name
    margins = [[(row["pair"], row["margin"]) for _, row in read_jsonl(adapter / MARGINS)] for adapter in (ours, theirs)]
    assert [pair for pair, _ in margins[0]] == [pair for pair, _ in margins[1]]
    assert [margin for _, margin in margins[0]] == pytest.approx([margin for _, margin in margins[1]], abs=1e-3)


def ordered(training: Training) -> tuple[list[str], dict[str, str]]:
    """Options and environment of the program for a training."""
    settings = training.work.parent / "settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"training": training.settings.model_dump()}))
    places = {"SFT_ADAPTER_PATH": training.start, "ADAPTER_PATH": training.output, "DPO_DATA_PATH": training.data}
    options = ["--settings", str(settings), "--work", str(training.work.parent), "--run", training.run]
    if training.store:
        options += ["--store", training.store.uri]
    return options, {name: str(path) for name, path in places.items()} | {"BASE_MODEL": training.base}


def test_two_processes_come_to_what_one_comes_to(uneven: Path, one: Path, tmp_path: Path) -> None:
    training = tiny.training(uneven, tmp_path, gpus=2, **SHAPE)
    assert training.run == tiny.training(uneven, tmp_path, **SHAPE).run
    options, environment = ordered(training)
    run_module("nothing_gpt.dpo.train", options, environment, tmp_path / "log")
    check_equal(training.output, one)
    assert {path.name for path in training.output.iterdir()} == {path.name for path in one.iterdir()}
    assert not list(tmp_path.glob("work/.*"))
