"""Training on TRL itself, with a model that is tiny: the losses, the checks, and survival.

One undisturbed run and one that is stopped serve most tests of this file.
"""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nothing_gpt.adapters import CONFIG, MARGINS, WEIGHTS, validate_adapter
from nothing_gpt.artifacts import Stage, Workshop
from nothing_gpt.bases import Base
from nothing_gpt.checkpoints import Checkpoints, newest_whole
from nothing_gpt.dpo import train as library
from nothing_gpt.dpo.recipe import METRICS, STEPS, Training, recipe
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.jobs.local import run_module
from nothing_gpt.losses import loss_at_reference
from nothing_gpt.policy import load_policy
from nothing_gpt.preferences import read_pairs
from nothing_gpt.records import digest, read_jsonl
from nothing_gpt.results import training_metrics
from nothing_gpt.store import open_store
from nothing_gpt.trainers import Survive
from nothing_gpt.training_figures import start_figures
from tests.chain import tiny
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.chain, pytest.mark.timeout(600), pytest.mark.usefixtures("alone", "deaf")]

SECRETS = {"HF_TOKEN": "hf_5ecret", "OPENAI_API_KEY": "sk-5ecret", "SERVE_API_KEY": "5ecret-key"}
STOPPED_AT = 7
"""A step within an epoch, after which no checkpoint is due."""
KILLED = f"""
import os, signal
from nothing_gpt.dpo.train import main
from nothing_gpt.trainers import ShowSteps

def stop(self, args, state, control, **_):
    if state.global_step == {STOPPED_AT}:
        os.kill(os.getpid(), signal.SIGTERM)

ShowSteps.on_step_end = stop
main()
"""


@pytest.fixture(scope="module", autouse=True)
def watched(alone: None) -> Iterator[None]:
    """By W&B too, whose files are written for later; and there are secrets that it could tell."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"WANDB_MODE": "offline", **SECRETS}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of a run that nothing disturbs."""
    training = tiny.training(model, tmp_path_factory.mktemp("undisturbed"))
    recipe(training)
    return training.output


@pytest.fixture(scope="module")
def stopped(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Training, "subprocess.CompletedProcess[str]"]:
    """A run as the program does it, which was sent a SIGTERM, and how it ended."""
    folder = tmp_path_factory.mktemp("stopped")
    training = tiny.training(model, folder, open_store(str(folder / "store")))
    (folder / "settings.json").write_text(json.dumps({"training": training.settings.model_dump()}))
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, "--settings", folder / "settings.json", "--work", training.work.parent,
         "--run", training.run, "--store", folder / "store"],
        env=os.environ | {"SFT_ADAPTER_PATH": str(training.start), "ADAPTER_PATH": str(training.output),
                          "DPO_DATA_PATH": str(training.data), "BASE_MODEL": training.base},
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return training, ended


def metrics(adapter: Path) -> dict[str, Any]:
    return json.loads((adapter / METRICS).read_text())


# What a run leaves.


def test_a_run_learns_the_preference_and_publishes_an_adapter_that_can_be_served(undisturbed: Path) -> None:
    assert validate_adapter(undisturbed).rank == 4
    figures = metrics(undisturbed)
    assert figures["step0_loss"] == pytest.approx(figures["step0_expected"], abs=1e-6)
    assert (figures["steps"], figures["eval_accuracy"], figures["changed_share"]) == (tiny.STEPS, 1, 1)
    assert figures["eval_loss"] < figures["step0_loss"]
    assert figures["eval_loss"] == np.float32(figures["eval_loss"]), "transformers' own mean, to the last bit"
    assert figures["eval_margin_ci"][0] > 0
    assert not list(undisturbed.parent.glob("work/*"))


def test_it_leaves_two_files_for_vllm_and_what_can_be_looked_at(undisturbed: Path) -> None:
    assert {path.name for path in undisturbed.iterdir()} == {CONFIG, WEIGHTS, METRICS, MARGINS, STEPS, "tracking"}
    logged = [row for _, row in read_jsonl(undisturbed / STEPS)]
    assert [row["step"] for row in logged if "eval_loss" in row] == [0, 4, 8, 12]
    kinds = {path.relative_to(undisturbed / "tracking").parts[0] for path in (undisturbed / "tracking").rglob("*.*")}
    assert kinds == {"tensorboard", "wandb"}


def test_the_margin_of_each_validation_pair_is_kept_by_the_pairs_id(model: Path, undisturbed: Path) -> None:
    kept = [row for _, row in read_jsonl(undisturbed / MARGINS)]
    assert [row["pair"] for row in kept] == [digest(pair) for pair in read_pairs(model / "data" / "val.jsonl")]
    margins = [row["margin"] for row in kept]
    assert sum(margins) / len(margins) == pytest.approx(metrics(undisturbed)["eval_margin"], abs=1e-6)


def test_tensorboard_and_wandb_have_every_evaluation(undisturbed: Path) -> None:
    assert evaluations(undisturbed)[-1] == pytest.approx((12, metrics(undisturbed)["eval_loss"]))
    assert [step for step, _ in evaluations(undisturbed)] == [0, 4, 8, 12]
    (run,) = (undisturbed / "tracking" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"eval/rewards/margins" in run.read_bytes()


def evaluations(adapter: Path) -> list[tuple[int, float]]:
    """Step and loss of each, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(adapter / "tracking" / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars("eval/loss")]


def test_no_secret_is_in_anything_that_it_leaves(undisturbed: Path) -> None:
    for path in undisturbed.rglob("*"):
        if path.is_file():
            assert b"5ecret" not in path.read_bytes(), path


# Survival.


def test_asked_to_stop_it_saves_and_says_that_it_can_go_on(
    stopped: tuple[Training, "subprocess.CompletedProcess[str]"],
) -> None:
    training, ended = stopped
    assert ended.returncode == TransientError.exit_code, ended.stderr
    assert f"stopped at step {STOPPED_AT} of {tiny.STEPS} with a checkpoint saved" in ended.stderr
    assert newest_whole(training.work) == training.work / f"checkpoint-{STOPPED_AT}"
    assert not training.output.exists()


def test_on_another_machine_which_has_nothing_but_the_store_a_run_ends_where_the_undisturbed_one_does(
    stopped: tuple[Training, "subprocess.CompletedProcess[str]"], undisturbed: Path, tmp_path: Path
) -> None:
    training = replace(stopped[0], work=tmp_path / "work", output=tmp_path / "out")
    recipe(training)
    ours, theirs = metrics(training.output), metrics(undisturbed)
    for name in ("eval_loss", "train_loss", "last_train_loss", "eval_margin", "step0_loss"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name
    assert ours["steps"] == tiny.STEPS
    assert [step for step, _ in evaluations(training.output)] == [0, 4, 8, 12]
    assert len(list((training.output / "tracking" / "wandb").glob("offline-run-*/run-*.wandb"))) == 2


def test_under_the_name_of_another_training_it_goes_on_from_none_of_its_checkpoints(
    stopped: tuple[Training, "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    """A name given with `--run` may be another's, whose copies a store keeps: its adapter would have been published."""
    other = replace(stopped[0], work=tmp_path / "work", output=tmp_path / "out", made_of="other pairs")
    with pytest.raises(FatalError, match=r"checkpoint-\d+ of the run .* was made of other data"):
        recipe(other)
    assert not other.output.exists()


def test_killed_just_before_it_publishes_it_only_does_that(
    fresh: Training, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer.dpo_trainer import DPOTrainer

    with monkeypatch.context() as patch:
        patch.setattr("nothing_gpt.dpo.recipe.publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            recipe(fresh)
    monkeypatch.setattr(DPOTrainer, "training_step", lambda *_, **__: pytest.fail("trained again"))
    recipe(fresh)
    assert metrics(fresh.output)["train_loss"] == pytest.approx(metrics(undisturbed)["train_loss"], abs=1e-4)


def test_a_retry_neither_tokenises_nor_runs_the_reference_again(
    stopped: tuple[Training, "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    elsewhere = replace(stopped[0], work=tmp_path / "elsewhere")
    other = shutil.copytree(elsewhere.start, tmp_path / "sft")
    scale(other)
    # In a process of its own, as a retry is.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as retry:
        assert "ref_chosen_logps" in retry.submit(columns_without_computing, elsewhere).result()
        with pytest.raises(AssertionError, match="computed again"):
            retry.submit(columns_without_computing, replace(elsewhere, start=other)).result()


def columns_without_computing(training: Training) -> list[str]:
    """The prepared training data's columns, where neither the tokenizer nor the reference may be run for them."""
    from transformers import PreTrainedTokenizerBase
    from trl.trainer.dpo_trainer import DPOTrainer

    def computed(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    for owner, name in ((PreTrainedTokenizerBase, "apply_chat_template"), (DPOTrainer, "compute_ref_log_probs")):
        setattr(owner, name, computed)
    return tiny.built(training).train_dataset.column_names


def scale(adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: 2 * tensor for name, tensor in load_file(adapter / WEIGHTS).items()}, adapter / WEIGHTS)


def test_as_a_stage_it_leaves_an_artifact_and_no_checkpoints(model: Path, workshop: Workshop) -> None:
    """The robust loss, too, with what the judge was measured to get wrong."""
    quality = model / "data" / "quality.json"
    quality.write_text('{"agreement": 0.82}')
    data, sft = model / "data", model / "sft"
    files = {name: data / name for name in ("train.jsonl", "val.jsonl")} | {"quality.json": quality}
    pairs = workshop.adopt(Stage("pairs", 1), files)
    start = workshop.adopt(Stage("sft", 1), {name: sft / name for name in (CONFIG, WEIGHTS)})
    robust = {"loss_type": "robust", "label_smoothing": "measured", "num_train_epochs": 1}
    settings = tiny.training(model, model, **robust).settings
    trained = library.train(workshop, pairs, start, Base(str(model / "base"), "tiny"), settings, run_module)
    figures = training_metrics(workshop, trained)
    assert (figures["steps"], figures["label_smoothing"]) == (tiny.STEPS // 2, pytest.approx(0.1))
    assert validate_adapter(workshop.folder(trained)).rank == 4
    assert list(workshop.store.list("checkpoints")) == []


def test_a_store_that_fails_stops_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = tiny.training(model, tmp_path, open_store(str(tmp_path / "store")), num_train_epochs=1)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for name in ("read", "upload"):
        monkeypatch.setattr(training.store, name, fail)
    recipe(training)
    assert validate_adapter(training.output).rank == 4
    said = capsys.readouterr().err
    assert "what is prepared is made anew, for the store's copy cannot be had" in said
    assert "what is prepared is on this machine only" in said
    assert "checkpoint-4 is on this machine only" in said


@pytest.mark.parametrize("damage", ["zeros", "cut"])
def test_what_was_prepared_and_is_damaged_is_prepared_anew(fresh: Training, damage: str) -> None:
    """It was trained on, against a wrong reference, or ended in a traceback."""
    reference = tiny.built(fresh).train_dataset["ref_chosen_logps"][:]
    values = np.asarray(reference, np.float32).tobytes()
    files = [path for path in (fresh.work / "prepared").rglob("*.arrow") if values in path.read_bytes()]
    assert files
    for path in files:
        data = path.read_bytes()
        path.write_bytes(data[:-200] if damage == "cut" else data.replace(values, bytes(len(values))))
    assert tiny.built(fresh).train_dataset["ref_chosen_logps"][:] == reference


def test_a_run_that_goes_on_logs_evaluates_and_saves_as_often_as_it_is_told_now(fresh: Training) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    state = TrainerState(global_step=4, max_steps=12, logging_steps=9, eval_steps=9, save_steps=9)
    args = TrainingArguments(str(fresh.work), logging_steps=1, eval_steps=2, save_steps=3, use_cpu=True)
    Survive(Checkpoints(fresh.work)).on_train_begin(args, state, TrainerControl())
    assert (state.logging_steps, state.eval_steps, state.save_steps) == (1, 2, 3)


# What stops it.


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_full_disk_is_one_clear_line(fresh: Training, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(FatalError, match=r"work/[.\w]+: cannot be used \(.*\); make room"):
        recipe(fresh)
    assert not fresh.output.exists()


def test_a_parameter_that_is_trained_in_less_than_float32_stops_it(
    fresh: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nothing_gpt.dpo.recipe.train_in_float32", lambda policy: policy.bfloat16())
    with pytest.raises(FatalError, match=r"is torch.bfloat16, and not float32"):
        tiny.built(fresh)


def test_a_loss_that_is_no_number_stops_it_and_keeps_the_last_whole_checkpoint(
    fresh: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer.dpo_trainer import DPOTrainer

    step = DPOTrainer.training_step

    def diverge(self: Any, *arguments: Any, **options: Any) -> Any:
        return step(self, *arguments, **options) * (float("nan") if self.state.global_step == 5 else 1)

    monkeypatch.setattr(DPOTrainer, "training_step", diverge)
    with pytest.raises(FatalError, match=r"loss of step 6 is nan; lower training.learning_rate to 0.0013"):
        recipe(fresh)
    assert newest_whole(fresh.work) == fresh.work / "checkpoint-4"
    assert not fresh.output.exists()


def test_too_little_memory_says_what_to_lower(fresh: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(DPOTrainer, "training_step", fail)
    with pytest.raises(FatalError) as error:
        recipe(fresh)
    assert "training.per_device_train_batch_size=1, training.gradient_accumulation_steps=4" in str(error.value)


def test_a_reference_that_is_not_the_starting_adapter_stops_it(model: Path, tmp_path: Path) -> None:
    training = tiny.training(model, tmp_path, precompute_ref_log_probs=False)
    trainer = tiny.built(training)
    for name, weight in trainer.model.named_parameters():
        if ".ref." in name:
            weight.data.zero_()  # as TRL 0.15 to 0.28 had it: the base model
    with pytest.raises(FatalError, match="the reference is not the starting adapter"):
        start_figures(trainer.evaluate(), loss_at_reference("sigmoid", 0.1))


def test_an_adapter_that_does_not_change_is_not_published(fresh: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nothing_gpt.dpo.recipe.changed_share", lambda *_: 0.0)
    with pytest.raises(FatalError, match="did not change; raise"):
        recipe(fresh)
    assert not fresh.output.exists()


def test_a_base_model_that_is_nowhere_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or it tries for three quarters of a minute
    with pytest.raises(FatalError, match="the base model nowhere at c0ffee cannot be loaded"):
        recipe(replace(tiny.training(model, tmp_path), base="nowhere", revision="c0ffee"))


def test_four_bits_want_a_gpu(model: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(FatalError, match="nf4 needs a CUDA device"):
        recipe(tiny.training(model, tmp_path, quantization="nf4"))


@pytest.mark.parametrize("change", [{"hidden_size": 48}, {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}])
def test_an_adapter_of_another_base_is_named(model: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    base = tmp_path / "base"
    base.mkdir()
    config = json.loads((model / "base" / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | change))
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)).save_pretrained(base)
    with pytest.raises(FatalError, match="made for another base model than"):
        load_policy(str(base), None, model / "sft", "none")
