"""What a training's log says: figures that a resumed run has too, and what to lower where memory did not suffice."""

from math import isnan, log, nan
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.config import TrainingSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.jobs.local import run_module
from nothing_gpt.training_figures import KEY_METRICS, final_figures, mean_loss, out_of_memory, smaller, start_figures


def evaluation(step: int, loss: float, margin: float = 0.0) -> dict[str, Any]:
    values = dict.fromkeys(KEY_METRICS, 0.0) | {"loss": loss, "rewards/margins": margin}
    return {"step": step} | {f"eval_{name}": value for name, value in values.items()}


LOG = [
    {"step": 3, "loss": 0.69},
    {"step": 4, "loss": 0.65},
    evaluation(4, 0.6),
    {"step": 8, "loss": 0.5},
    evaluation(8, 0.55, 0.3),
    {"step": 8, "train_loss": 0.1},
]
"""Rows as they are logged: each loss is the mean since the row before it."""


def test_the_loss_before_training_is_that_of_a_policy_that_is_its_reference() -> None:
    figures = start_figures(evaluation(0, log(2)), log(2))
    assert (figures["step0_loss"], figures["step0_expected"], figures["step0_margin"]) == (log(2), log(2), 0)
    assert start_figures(evaluation(0, 25.0), 25.0)["step0_loss"] == 25


@pytest.mark.parametrize(
    ("loss", "margin"), [(0.72, 0.0), (0.67, 0.0), (4.753, -0.249), (log(2), 0.06), (nan, 0.0), (log(2), nan)]
)
def test_another_loss_or_margin_says_that_the_reference_is_not_the_starting_adapter(loss: float, margin: float) -> None:
    with pytest.raises(FatalError, match="the reference is not the starting adapter; check SFT_ADAPTER_PATH"):
        start_figures(evaluation(0, loss, margin), log(2))


def test_the_last_evaluation_is_the_result() -> None:
    figures = final_figures(LOG)
    assert (figures["steps"], figures["eval_loss"], figures["eval_margin"]) == (8, 0.55, 0.3)
    assert (figures["lowest_eval_loss"], figures["highest_eval_margin"]) == (0.55, 0.3)


def test_the_training_loss_is_the_mean_over_all_steps_however_they_were_logged() -> None:
    assert mean_loss(LOG) == pytest.approx((3 * 0.69 + 0.65 + 4 * 0.5) / 8)
    assert mean_loss([{"step": 8, "loss": mean_loss(LOG)}]) == pytest.approx(mean_loss(LOG))
    assert mean_loss(LOG, after=4) == 0.5
    assert isnan(mean_loss([]))


def settings(**values: Any) -> TrainingSettings:
    return TrainingSettings(**({"per_device_eval_batch_size": 1, "gradient_checkpointing": True} | values))


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (settings(per_device_train_batch_size=4, gradient_accumulation_steps=4),
         ["training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=8"]),
        (settings(per_device_train_batch_size=3, gradient_accumulation_steps=5),
         ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=15"]),
        (settings(per_device_train_batch_size=1, per_device_eval_batch_size=8),
         ["training.per_device_eval_batch_size=4",
          "training.max_length=1024 with training.long_pairs=drop", "training.quantization=nf4 on a CUDA device"]),
        (settings(per_device_train_batch_size=1, gradient_checkpointing=False),
         ["training.gradient_checkpointing=true"]),
        (settings(per_device_train_batch_size=1, quantization="nf4"),
         ["training.max_length=1024 with training.long_pairs=drop"]),
    ],
)  # fmt: skip
def test_what_to_lower_keeps_the_pairs_an_update(given: TrainingSettings, advice: list[str]) -> None:
    assert smaller(given) == advice


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_memory_is_one_line(error: Exception) -> None:
    with pytest.raises(FatalError, match="out of memory; set "), out_of_memory(TrainingSettings()):
        raise error


def test_a_process_that_was_killed_is_told_the_same_advice(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    given = settings(per_device_train_batch_size=1, quantization="nf4")
    with pytest.raises(FatalError) as error, out_of_memory(given):
        run_module("killed", [], {"PYTHONPATH": str(tmp_path)}, tmp_path / "log")
    assert str(error.value) == (
        f"killed was killed (SIGKILL; its log is {tmp_path / 'log'}): memory may have run out; if so, set "
        "training.max_length=1024 with training.long_pairs=drop"
    )


def test_another_error_is_left_alone() -> None:
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory(TrainingSettings()):
        raise RuntimeError("shapes do not fit")
