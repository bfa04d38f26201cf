"""Training as two processes on the CPU: the losses of one, and one that is killed.

One undisturbed run in one process is what all are compared with. Its pairs fill neither the last update of an epoch nor
the last batch of an evaluation.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.adapters import MARGINS, METRICS
from nothing_gpt.dpo.recipe import Training, recipe
from nothing_gpt.errors import FatalError
from nothing_gpt.jobs.local import run_module
from nothing_gpt.processes import Child, free_port
from nothing_gpt.ranks import ENDPOINT, INDEX
from nothing_gpt.records import read_jsonl
from nothing_gpt.store import open_store
from tests.chain import tiny
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.chain, pytest.mark.timeout(600), pytest.mark.usefixtures("alone")]

SHAPE: dict[str, Any] = {"gradient_accumulation_steps": 4, "save_steps": 2, "eval_steps": 3, "logging_steps": 2}
STEPS = 6
"""21 pairs, 8 an update, 2 epochs: the last update of each has 5, in micro-batches of 2, 2 and 1."""
ENDED_AT = 3
"""A step after which one rank ends; the last checkpoint is that of step 2."""
PROGRAM = f"""
import os, signal, sys
from pathlib import Path
from nothing_gpt import launcher
from nothing_gpt.dpo.train import main

once = Path(os.environ["ONCE"])

def end(self, args, state, control, **_):
    if os.environ["RANK"] == "1" and state.global_step == {ENDED_AT} and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)

if "TORCHELASTIC_RUN_ID" in os.environ:
    from nothing_gpt.trainers import Survive
    Survive.on_step_begin = end
else:  # the agent, whose ranks are this program too
    launch = launcher.launch
    launcher.launch = lambda command, *group: launch([sys.executable, __file__, *command[4:]], *group)
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


def test_a_group_that_lost_a_process_goes_on_from_its_last_checkpoint(uneven: Path, one: Path, tmp_path: Path) -> None:
    training = tiny.training(uneven, tmp_path, gpus=2, **SHAPE)
    options, environment = ordered(training)
    with program(tmp_path, options, environment) as child:
        code = child.wait(90)
    log = child.log.read_text()
    assert code == 0, log
    assert (tmp_path / "once").exists()
    assert "going on from checkpoint-2" in log
    check_equal(training.output, one)


def test_machines_meet_and_one_that_is_replaced_takes_the_group_back_to_its_last_checkpoint(
    uneven: Path, one: Path, tmp_path: Path
) -> None:
    """Two machines of one process each; the second is killed, agent and all, and comes again with empty disks."""
    store, endpoint = open_store(str(tmp_path / "store")), f"127.0.0.1:{free_port()}"
    trainings = [tiny.training(uneven, tmp_path / str(index), store=store, nodes=2, **SHAPE) for index in range(3)]
    with ExitStack() as stack:

        def machine(place: int, index: int) -> Child:
            training = replace(trainings[place], run=trainings[0].run)
            options, environment = ordered(training)
            meeting = {ENDPOINT: endpoint, INDEX: str(index)}
            return stack.enter_context(program(tmp_path, options, environment | meeting, f"{place}.log"))

        first, second = machine(0, 0), machine(1, 1)
        wait_until((tmp_path / "once").exists, first, second)
        os.kill(second.pid, signal.SIGKILL)
        third = machine(2, 1)
        codes = [child.wait(90) for child in (first, third)]
    assert codes == [0, 0], (first.log.read_text(), third.log.read_text())
    assert "going on from checkpoint-2" in first.log.read_text()
    check_equal(trainings[0].output, one)
    assert not trainings[2].output.exists()


def test_what_cannot_be_mended_is_not_tried_again(uneven: Path, tmp_path: Path) -> None:
    training = tiny.training(uneven, tmp_path, gpus=2, gradient_accumulation_steps=4, max_length=8)
    options, environment = ordered(training)
    with pytest.raises(FatalError, match=r"train.jsonl: 21 of 21 pairs are longer than training.max_length = 8"):
        run_module("nothing_gpt.dpo.train", options, environment, tmp_path / "log")
    assert (tmp_path / "log").read_text().count("error: ") <= 2  # one a process


def program(folder: Path, options: list[str], environment: dict[str, str], log: str = "log") -> Child:
    """The training program, whose second rank is killed once."""
    script = folder / "program.py"
    script.write_text(PROGRAM)
    variables = environment | {"ONCE": str(folder / "once"), "PYTHONPATH": str(REPOSITORY)}
    return Child([sys.executable, str(script), *options], folder / log, variables)


def wait_until(reached: Callable[[], bool], *children: Child) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert all(child.running for child in children), [child.tail() for child in children]
        assert time.monotonic() < deadline, [child.tail() for child in children]
        time.sleep(0.1)
