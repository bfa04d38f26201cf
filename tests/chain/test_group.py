"""Training as two processes on the CPU: the losses of one, also sharded, asked to stop, and where one is killed.

One undisturbed run in one process is what all are compared with. Its pairs fill neither the last update of an epoch nor
the last batch of an evaluation. How a group is started and watched is tested in `tests/test_launcher.py`.
"""

import json
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.adapters import MARGINS, METRICS, WEIGHTS
from nothing_gpt.checkpoints import newest_whole
from nothing_gpt.dpo.recipe import Training, recipe
from nothing_gpt.errors import TransientError
from nothing_gpt.processes import Child, free_port
from nothing_gpt.ranks import ADDRESS, ENDPOINT, INDEX
from nothing_gpt.records import read_jsonl
from nothing_gpt.store import open_store
from tests.chain import group, tiny
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.group, pytest.mark.timeout(1200), pytest.mark.usefixtures("alone")]

SHAPE: dict[str, Any] = {"gradient_accumulation_steps": 4, "save_steps": 2, "eval_steps": 3, "logging_steps": 2}
STEPS = 6
"""21 pairs, 8 an update, 2 epochs: the last update of each has 5, in micro-batches of 2, 2 and 1."""
KILLED = {"killed_before": 4}
"""The last checkpoint is that of step 2."""
ASKED = {"asked_in": 3}
"""No other checkpoint is made after step 3, and an evaluation is due."""
PATIENCE_S = 900
"""No test waits so long unless it fails."""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory, alone: None) -> Path:
    """A model with pairs that leave a rest wherever they are shared out."""
    return make(tmp_path_factory.mktemp("uneven"))


def make(folder: Path, **shape: int) -> Path:
    tiny.make(folder, **shape)
    for name, count in (("train.jsonl", 21), ("val.jsonl", 7)):
        file = folder / "data" / name
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:count]))
    return folder


@pytest.fixture(scope="module")
def one(uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of one process."""
    training = tiny.training(uneven, tmp_path_factory.mktemp("one"), **SHAPE)
    undisturbed(training)
    return training.output


def undisturbed(training: Training) -> None:
    before = signal.getsignal(signal.SIGTERM)
    recipe(training)
    signal.signal(signal.SIGTERM, before)


def check_equal(ours: Path, theirs: Path) -> None:
    """That two trainings came to the same: figures, the margin of each pair, and the weights."""
    from safetensors.torch import load_file

    mine, other = (json.loads((adapter / METRICS).read_text()) for adapter in (ours, theirs))
    assert mine["steps"] == other["steps"] == STEPS
    for name in ("step0_loss", "train_loss", "last_train_loss", "eval_loss", "lowest_eval_loss"):
        assert mine[name] == pytest.approx(other[name], abs=1e-4), name
    margins = [[(row["pair"], row["margin"]) for _, row in read_jsonl(adapter / MARGINS)] for adapter in (ours, theirs)]
    assert [pair for pair, _ in margins[0]] == [pair for pair, _ in margins[1]]
    assert [margin for _, margin in margins[0]] == pytest.approx([margin for _, margin in margins[1]], rel=1e-3)
    weights, others = (load_file(adapter / WEIGHTS) for adapter in (ours, theirs))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.allclose(others[name], atol=1e-4), name


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


def test_a_group_that_is_asked_to_stop_saves_a_whole_checkpoint_and_comes_to_what_one_process_comes_to(
    uneven: Path, one: Path, tmp_path: Path
) -> None:
    """As a machine that is taken away asks, and sharded: FSDP."""
    training = tiny.training(uneven, tmp_path, gpus=2, **SHAPE)
    assert training.run == tiny.training(uneven, tmp_path, **SHAPE).run
    code, log = run(training, {**ASKED, "sharded": True})
    assert code == TransientError.exit_code, log
    assert "stopped at step 3 of 6 with a checkpoint saved" in log
    assert newest_whole(training.work) == training.work / "checkpoint-3"
    assert not training.output.exists()
    code, log = run(training, {**ASKED, "sharded": True})
    assert code == 0, log
    assert "going on from checkpoint-3" in log
    check_equal(training.output, one)
    assert {path.name for path in training.output.iterdir()} == {path.name for path in one.iterdir()}
    assert not list(tmp_path.glob("work/.*"))


def test_a_group_that_lost_a_process_goes_on_from_its_last_checkpoint_also_in_shards_of_four_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP with QLoRA, in bitsandbytes' own 4 bits."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    monkeypatch.setattr("nothing_gpt.dpo.recipe.check_device", lambda *_: None)
    wide = make(tmp_path / "wide", hidden_size=64)  # what bitsandbytes multiplies on a CPU has blocks of 64
    alone = tiny.training(wide, tmp_path / "alone", quantization="nf4", **SHAPE)
    undisturbed(alone)
    training = tiny.training(wide, tmp_path, gpus=2, quantization="nf4", **SHAPE)
    code, log = run(training, {**KILLED, "sharded": True})
    assert code == 0, log
    assert (tmp_path / "once").exists()
    assert "going on from checkpoint-2" in log
    check_equal(training.output, alone.output)


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
            meeting = {ENDPOINT: endpoint, INDEX: str(index), ADDRESS: f"127.0.0.{1 + index}"}
            scene = {**KILLED, "with_agent": True}
            return stack.enter_context(program(tmp_path, options, environment | meeting, scene, f"{place}.log"))

        first, second = machine(0, 0), machine(1, 1)
        assert second.wait(PATIENCE_S) == 128 + signal.SIGKILL, [child.log.read_text() for child in (first, second)]
        third = machine(2, 1)
        codes = [child.wait(PATIENCE_S) for child in (first, third)]
    assert codes == [0, 0], [child.log.read_text() for child in (first, third)]
    assert "going on from checkpoint-2" in first.log.read_text()
    check_equal(trainings[0].output, one)
    assert not trainings[2].output.exists()


def run(training: Training, scene: dict[str, Any]) -> tuple[int, str]:
    """The exit code of the training program, and what it said."""
    options, environment = ordered(training)
    with program(training.output.parent, options, environment, scene) as child:
        code = child.wait(PATIENCE_S)
    return code, child.log.read_text()


def program(
    folder: Path, options: list[str], environment: dict[str, str], scene: dict[str, Any], log: str = "log"
) -> Child:
    variables = environment | {
        group.VARIABLE: json.dumps(group.Scene(once=str(folder / "once"), **scene)),
        "PYTHONPATH": str(REPOSITORY),
    }
    return Child([sys.executable, group.__file__, *options], folder / log, variables)
