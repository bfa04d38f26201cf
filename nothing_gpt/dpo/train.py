"""Stage 4: DPO (Rafailov et al. 2023, arXiv 2305.18290) with TRL on one LoRA adapter.

    SFT_ADAPTER_PATH=... ADAPTER_PATH=... DPO_DATA_PATH=... python -m nothing_gpt.dpo.train [--settings FILE]

reads `train.jsonl` and `val.jsonl` in DPO_DATA_PATH and publishes the adapter in ADAPTER_PATH, with `metrics.json` and
the per-step log `steps.jsonl` beside it. The policy is the starting adapter, the reference TRL's own frozen copy of it.
Before the first update the loss must be ln 2: otherwise the reference is not where training starts, and it stops.
Killed or preempted, it goes on from the newest whole checkpoint. It trains one adapter on one machine.
"""

import argparse
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nothing_gpt.adapters import Base, changed_share, save_adapter, validate_adapter
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.checkpoints import newest_whole
from nothing_gpt.config import Environment, TrainingSettings
from nothing_gpt.errors import FatalError, TransientError, exits_cleanly
from nothing_gpt.intervals import bootstrap_mean, wilson
from nothing_gpt.preferences import read_pairs
from nothing_gpt.processes import Run
from nothing_gpt.progress import say
from nothing_gpt.records import write_jsonl

if TYPE_CHECKING:
    from peft import PeftModel

    from nothing_gpt.trainers import PreferenceTrainer

STAGE = Stage("train", 1)
METRICS = "metrics.json"
STEPS = "steps.jsonl"
UNFINGERPRINTED = {"save_steps", "logging_steps", "eval_steps", "per_device_eval_batch_size"}
"""Settings that change how training is watched, and not what comes of it."""
STEP0_LOSS_TOLERANCE = 0.02
STEP0_MARGIN_TOLERANCE = 0.05


def train(
    workshop: Workshop, pairs: Artifact, adapter: Artifact, base: Base, settings: TrainingSettings, run: Run
) -> Artifact:
    """The trained adapter as an artifact: a folder that PEFT and vLLM load, with `metrics.json` and `steps.jsonl`.

    Raises:
        FatalError: bad data or adapter, a wrong reference, or a loss that is not finite.
        TransientError: training was interrupted and can go on.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        finished = folder / "_adapter"
        # The trainer publishes it whole or not at all: if it is there, we were killed just after.
        if not finished.exists():
            settings_file = folder / "_settings.json"
            settings_file.write_text(settings.model_dump_json(), encoding="utf-8")
            places = {
                "SFT_ADAPTER_PATH": str(workshop.folder(adapter)),
                "ADAPTER_PATH": str(finished),
                "DPO_DATA_PATH": str(workshop.folder(pairs)),
                "BASE_MODEL": base.location,
            }
            arguments = ["--settings", str(settings_file), "--work", str(folder / "_work")]
            run("nothing_gpt.dpo.train", arguments, places, folder / "_train.log")
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return {"rows": metrics["train_pairs"], "steps": metrics["steps"]}

    fingerprinted = settings.model_dump(exclude=UNFINGERPRINTED) | {"base": base.identity}
    return workshop.make(STAGE, fingerprinted, {"pairs": pairs, "adapter": adapter}, build)


@exits_cleanly
def main() -> None:
    """The recipe: checks, model, step-0 check, training, metrics, publication."""
    parser = argparse.ArgumentParser(description="DPO training of one adapter.")
    parser.add_argument("--settings", type=Path, help="JSON of the training settings; default: the recommended ones")
    parser.add_argument("--work", type=Path, help="folder for checkpoints; default: beside ADAPTER_PATH")
    arguments = parser.parse_args()
    environment = Environment()
    try:
        settings = TrainingSettings.model_validate_json(
            arguments.settings.read_bytes() if arguments.settings else b"{}"
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FatalError(f"{arguments.settings}: cannot be read as training settings ({reason})") from None
    start, output, data = environment.sft_adapter_path, environment.adapter_path, environment.dpo_data_path
    work = arguments.work or output.with_name(f".{output.name}.work")

    train_rows, val_rows = read_pairs(data / "train.jsonl"), read_pairs(data / "val.jsonl")
    base = environment.base_model or validate_adapter(start).base
    validate_adapter(start, Path(base) if Path(base).is_dir() else None)
    os.environ["HF_DATASETS_CACHE"] = str(work / "datasets")

    trainer, policy = build_trainer(base, start, train_rows, val_rows, settings, work)
    checkpoint = newest_whole(work)
    step0 = step0_check(trainer, settings, work)
    if checkpoint:
        say(f"train: going on from {checkpoint.name}")
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < trainer.state.max_steps:
        raise TransientError(
            f"train: stopped at step {trainer.state.global_step} of {trainer.state.max_steps} with a "
            "checkpoint saved; run again to go on"
        )
    if not math.isfinite(result.training_loss):
        raise FatalError(f"train: the loss is {result.training_loss}; lower training.learning_rate")
    metrics = (
        step0
        | final_metrics(trainer, policy)
        | {
            "steps": trainer.state.global_step,
            "train_loss": result.training_loss,
            "train_pairs": len(train_rows),
            "val_pairs": len(val_rows),
        }
    )
    publish(trainer, policy, start, output, metrics)
    shutil.rmtree(work, ignore_errors=True)


def build_trainer(
    base: str,
    start: Path,
    train_rows: list[dict[str, Any]],
    val_rows: list[dict[str, Any]],
    settings: TrainingSettings,
    work: Path,
) -> tuple["PreferenceTrainer", "PeftModel"]:
    """TRL's trainer and the policy it trains: the starting adapter, with float32 trainable parameters.

    Raises:
        FatalError: nf4 without a CUDA device, or a pair longer than `max_length`.
    """
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl.trainer.dpo_config import DPOConfig

    from nothing_gpt.trainers import PreferenceTrainer, ShowSteps

    cuda = torch.cuda.is_available()
    quantization = None
    if settings.quantization == "nf4":
        if not cuda:
            raise FatalError("training.quantization: nf4 needs a CUDA device, and there is none; use none")
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=True,
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
        refuse_long_pairs(tokenizer, train_rows + val_rows, settings.max_length)
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.bfloat16 if cuda else torch.float32, quantization_config=quantization
        )
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise FatalError(f"train: the base model {base} cannot be loaded ({reason}); check BASE_MODEL") from None
    policy = PeftModel.from_pretrained(model, str(start), is_trainable=True)
    named_like_ours = settings.model_dump(exclude={"quantization", "loss_type", "sft_weight"})
    trainer = PreferenceTrainer(
        model=policy,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(train_rows),
        eval_dataset=Dataset.from_list(val_rows),
        args=DPOConfig(
            output_dir=str(work),
            loss_type=[settings.loss_type, "sft"],
            loss_weights=[1.0, settings.sft_weight],
            bf16=cuda,
            use_cpu=not cuda,
            eval_strategy="steps",
            save_strategy="steps",
            save_total_limit=2,
            enable_jit_checkpoint=True,
            report_to=[],
            disable_tqdm=True,
            **named_like_ours,
        ),
    )
    # On a 4-bit base TRL casts the adapter to bfloat16, where updates of the usual size round away.
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.add_callback(ShowSteps("train"))
    return trainer, policy


def refuse_long_pairs(tokenizer: Any, rows: list[dict[str, Any]], max_length: int) -> None:
    """Raises FatalError where a prompt with a completion has more than `max_length` tokens: TRL would cut it."""
    texts = [
        tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
        for row in rows
        for side in ("chosen", "rejected")
    ]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    too_long = sum(length > max_length for length in lengths)
    if too_long:
        raise FatalError(
            f"train: {too_long} of {len(lengths)} sequences are longer than training.max_length = "
            f"{max_length} tokens (the longest has {max(lengths)}); raise it, or take these pairs out"
        )


def loss_at_reference(loss_type: str, beta: float) -> float:
    """The loss of a policy that equals its reference: each loss of TRL's `DPOTrainer` at log-ratios of 0."""
    return {"hinge": 1.0, "apo_zero": 1.0, "ipo": 1 / (2 * beta) ** 2}.get(loss_type, math.log(2))


def step0_check(trainer: "PreferenceTrainer", settings: TrainingSettings, work: Path) -> dict[str, float]:
    """Evaluates before the first update and keeps the result for a resumed run.

    Raises:
        FatalError: loss or margin say that the reference is not the starting adapter.
    """
    kept = work / "step0.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    measured = trainer.evaluate()
    loss, margin = measured["eval_loss"], measured["eval_rewards/margins"]
    expected = loss_at_reference(settings.loss_type, settings.beta)
    if not (abs(loss - expected) < STEP0_LOSS_TOLERANCE and abs(margin) < STEP0_MARGIN_TOLERANCE):
        raise FatalError(
            f"train: before the first update the loss is {loss:.4f} (expected {expected:.4f}) and the margin "
            f"{margin:.4f} (expected 0): the reference is not the starting adapter; check SFT_ADAPTER_PATH and the "
            "versions of trl and peft"
        )
    step0 = {"step0_loss": loss, "step0_expected": expected, "step0_margin": margin}
    work.mkdir(parents=True, exist_ok=True)
    half = kept.with_suffix(".half")
    half.write_text(json.dumps(step0))
    half.replace(kept)
    return step0


def final_metrics(trainer: "PreferenceTrainer", policy: "PeftModel") -> dict[str, Any]:
    """Accuracy (Wilson) and margin (bootstrap over pairs) on the validation pairs, with 95 % intervals."""
    margins = pair_margins(trainer, policy)
    accuracy = wilson(sum(margin > 0 for margin in margins), len(margins))
    margin = bootstrap_mean(margins)
    last = next(row for row in reversed(trainer.state.log_history) if "eval_loss" in row)
    return {
        "eval_loss": last["eval_loss"],
        "eval_accuracy": accuracy.value,
        "eval_accuracy_ci": [accuracy.low, accuracy.high],
        "eval_margin": margin.value,
        "eval_margin_ci": [margin.low, margin.high],
    }


def pair_margins(trainer: "PreferenceTrainer", policy: "PeftModel") -> list[float]:
    """Reward margin of each validation pair: beta times the difference of the two log-ratios (equation 7 of the paper:
    the argument of its sigmoid)."""
    import torch

    margins: list[float] = []
    policy.eval()
    for batch in trainer.get_eval_dataloader():
        reference_chosen, reference_rejected = trainer.compute_ref_log_probs(policy, batch)
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        with torch.no_grad(), trainer.accelerator.autocast():
            outputs = policy(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                labels=labels,
                use_cache=False,
                fused_lm_head=True,
            )
        chosen, rejected = outputs.log_probs.sum(dim=1).chunk(2)
        ratios = (chosen - reference_chosen) - (rejected - reference_rejected)
        margins.extend((trainer.beta * ratios).tolist())
    return margins


def publish(
    trainer: "PreferenceTrainer", policy: "PeftModel", start: Path, output: Path, metrics: dict[str, Any]
) -> None:
    """Writes the adapter, validated, with its metrics. The folder appears whole or not at all.

    Raises:
        FatalError: the adapter is not finite, or is still the starting one.
    """
    finished = output.with_name(f".{output.name}.finished")
    shutil.rmtree(finished, ignore_errors=True)
    save_adapter(policy, finished)
    validate_adapter(finished)
    changed = changed_share(start, finished)
    if changed == 0:
        raise FatalError("train: the adapter did not change; raise training.learning_rate or training.num_train_epochs")
    (finished / METRICS).write_text(json.dumps(metrics | {"changed_share": changed}, indent=1), encoding="utf-8")
    before = {"step": 0, "eval_loss": metrics["step0_loss"], "eval_rewards/margins": metrics["step0_margin"]}
    write_jsonl(finished / STEPS, (_without_timing(row) for row in [before, *trainer.state.log_history]))
    shutil.rmtree(output, ignore_errors=True)
    finished.replace(output)


def _without_timing(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.endswith(("_runtime", "_per_second", "total_flos"))}


if __name__ == "__main__":
    main()
