"""What a training's log says, as the figures of `metrics.json`; and what to change where memory did not suffice.

Pure functions of rows as TRL logs them: `loss`, `eval_loss`, `rewards/margins` and so on, with the `step`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from nothing_gpt.config import TrainingSettings
from nothing_gpt.errors import FatalError, Killed

OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What the CPU's allocator says; torch's own error and CUDA's; and cuBLAS. They share no type but RuntimeError."""
STEP0_LOSS_TOLERANCE = 0.02
STEP0_MARGIN_TOLERANCE = 0.05
KEY_METRICS = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "rewards_chosen",
    "rewards/rejected": "rewards_rejected",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
}
"""TRL's names of what tells how a DPO training goes, and ours, to which `eval_` or `step0_` is put."""


def start_figures(measured: Mapping[str, float], expected: float) -> dict[str, float]:
    """The evaluation before the first update, as `step0_*`. `expected` is the loss of a policy that is its reference.

    Raises:
        FatalError: loss or margin say that the reference is not the starting adapter.
    """
    figures = {"step0_expected": expected, **_figures("step0", measured)}
    loss, margin = figures["step0_loss"], figures["step0_margin"]
    if not (abs(loss - expected) < STEP0_LOSS_TOLERANCE and abs(margin) < STEP0_MARGIN_TOLERANCE):
        raise FatalError(
            f"train: before the first update the loss is {loss:.4f} (expected {expected:.4f}) and the margin "
            f"{margin:.4f} (expected 0): the reference is not the starting adapter; check SFT_ADAPTER_PATH and the "
            "versions of trl and peft"
        )
    return figures


def final_figures(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last evaluation as `eval_*`, the steps, and what to compare it with: the mean training loss, of all steps and
    of the last quarter, the lowest evaluated loss and the highest margin."""
    evaluations = [row for row in log if "eval_loss" in row and row["step"]]
    steps = max(row["step"] for row in log)
    return {
        "steps": steps,
        "train_loss": mean_loss(log),
        "last_train_loss": mean_loss(log, after=steps * 3 // 4),
        "lowest_eval_loss": min(row["eval_loss"] for row in evaluations),
        "highest_eval_margin": max(row["eval_rewards/margins"] for row in evaluations),
        **_figures("eval", evaluations[-1]),
    }


def mean_loss(log: Sequence[Mapping[str, Any]], after: int = 0) -> float:
    """The mean training loss of the steps after `after`. Each row of the log holds the mean since the row before, so
    that a resumed training's mean is that of all its steps, and not only of those since it went on."""
    total = counted = before = 0
    for row in log:
        if "loss" in row:
            if row["step"] > after:
                total += row["loss"] * (row["step"] - before)
                counted += row["step"] - before
            before = row["step"]
    return total / counted if counted else float("nan")


@contextmanager
def out_of_memory(settings: TrainingSettings) -> Iterator[None]:
    """Turns too little memory, here or in a process that was killed, into one line that says what to lower, and to
    what."""
    try:
        yield
    except Killed as error:
        raise FatalError(f"{error}; if so, set {', '.join(smaller(settings))}") from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise FatalError(f"train: out of memory; set {', '.join(smaller(settings))}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so: of its own, of the CPU's allocator, of CUDA or of cuBLAS."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


def smaller(settings: TrainingSettings) -> list[str]:
    """Settings that take less memory, with the same number of pairs an update where that can be."""
    micro, evaluated = settings.per_device_train_batch_size, settings.per_device_eval_batch_size
    advice: list[str] = []
    if micro > 1:
        processes = settings.gpus * settings.nodes
        each = -(-micro * settings.gradient_accumulation_steps // (micro // 2 * processes))
        advice += [
            f"training.per_device_train_batch_size={micro // 2}",
            f"training.gradient_accumulation_steps={each * processes}",
        ]
    if evaluated > 1:
        advice.append(f"training.per_device_eval_batch_size={evaluated // 2}")
    if not settings.gradient_checkpointing:
        advice.append("training.gradient_checkpointing=true")
    if micro == 1 and settings.gradient_checkpointing:
        advice.append(f"training.max_length={settings.max_length // 2} with training.long_pairs=drop")
        if settings.quantization == "none":
            advice.append("training.quantization=nf4 on a CUDA device")
    return advice


def _figures(prefix: str, row: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}_{ours}": row[f"eval_{theirs}"] for theirs, ours in KEY_METRICS.items()}
