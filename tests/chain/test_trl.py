"""What TRL is given by the recipe, and what it computes: on TRL itself, with a model that is tiny."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.adapters import WEIGHTS
from nothing_gpt.config import TrainingSettings
from nothing_gpt.dpo import recipe as library
from nothing_gpt.dpo.recipe import Training
from nothing_gpt.losses import LogRatios, loss_at_reference, preference_loss
from nothing_gpt.training_figures import start_figures
from tests.chain import tiny

pytestmark = [pytest.mark.chain, pytest.mark.timeout(600), pytest.mark.usefixtures("alone")]


def test_every_setting_reaches_trl(fresh: Training) -> None:
    given = TrainingSettings(
        beta=0.3, loss_type="robust", label_smoothing=0.2, sft_weight=0.5, learning_rate=3e-4, num_train_epochs=3,
        lr_scheduler_type="cosine", warmup_steps=5, per_device_train_batch_size=3, per_device_eval_batch_size=5,
        gradient_accumulation_steps=6, max_length=300, long_pairs="drop", gradient_checkpointing=True,
        precompute_ref_log_probs=False, eval_steps=7, save_steps=11, logging_steps=13, seed=9, bf16=False,
    )  # fmt: skip
    elsewhere = {"quantization", "starting_version", "gpus", "nodes"}  # read before TRL is
    same = {name for name, value in TrainingSettings() if value == getattr(given, name)}
    assert same == elsewhere, "each is off its default, or its loss would not be seen"
    trainer = tiny.built(replace(fresh, settings=given), smoothing=0.2)
    for name, value in given.model_dump(exclude=library.OURS).items():
        assert getattr(trainer.args, name) == value, name
    assert (trainer.args.loss_type, trainer.args.loss_weights) == (["robust", "sft"], [1, 0.5])
    assert (trainer.args.label_smoothing, trainer.data_collator.max_length) == (0.2, 300)
    assert (trainer.beta, trainer.label_smoothing, trainer.loss_weights) == (0.3, 0.2, [1, 0.5])
    assert not trainer.precompute_ref_logps
    assert (trainer.args.ignore_data_skip, trainer.args.save_total_limit) == (False, 2)
    assert (trainer.args.eval_strategy, trainer.args.save_strategy) == ("steps", "steps")


def test_the_losses_are_trl_s_own(fresh: Training) -> None:
    import torch

    trainer = tiny.built(replace(fresh, settings=fresh.settings.model_copy(update={"sft_weight": 0.0})))
    torch.manual_seed(0)
    for name, weight in trainer.model.named_parameters():
        if ".default." in name:
            weight.data.add_(0.1 * torch.randn_like(weight))
    batch = next(iter(trainer.get_eval_dataloader()))
    with torch.no_grad():
        logps = [trainer.model(**model_inputs(batch), fused_lm_head=True).log_probs.sum(dim=1).chunk(2)]
    ((chosen, rejected),) = logps
    tokens = batch["completion_mask"].sum(dim=1).chunk(2)
    ratios = LogRatios.of(chosen - batch["ref_chosen_logps"], rejected - batch["ref_rejected_logps"], *tokens)
    assert abs(ratios.margin).min() > 0.01
    trainer.model.eval()
    for loss_type in ("sigmoid", "hinge", "ipo", "robust", "apo_zero", "sigmoid_norm"):
        trainer.loss_types, trainer.beta, trainer.label_smoothing = [loss_type, "sft"], 0.7, 0.2
        with torch.no_grad():
            theirs = trainer.compute_loss(trainer.model, batch).item()
        ours = preference_loss(loss_type, ratios, 0.7, 0.2 if loss_type == "robust" else 0)
        assert ours.mean() == pytest.approx(theirs, abs=1e-4), loss_type


def model_inputs(batch: Any) -> dict[str, Any]:
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels,
            "use_cache": False}  # fmt: skip


def test_what_is_trained_is_the_adapter_in_float32_and_nothing_else(fresh: Training) -> None:
    import torch

    trained = {name: weight for name, weight in tiny.built(fresh).model.named_parameters() if weight.requires_grad}
    assert trained
    assert all(".default." in name and "lora_" in name for name in trained)
    assert {weight.dtype for weight in trained.values()} == {torch.float32}


def test_on_four_bits_the_policy_begins_as_its_reference_in_float32_and_goes_on_as_it_was_saved(tmp_path: Path) -> None:
    """bitsandbytes' own 4 bits, which it has on a CPU too. TRL rounds what is trained there to bfloat16."""
    import torch
    from bitsandbytes.nn.modules import Linear4bit
    from safetensors.torch import load_file

    # What bitsandbytes multiplies on a CPU has blocks of 64.
    training = tiny.training(tiny.make(tmp_path, hidden_size=64), tmp_path, quantization="nf4")
    trainer = tiny.built(training)
    assert sum(isinstance(module, Linear4bit) for module in trainer.model.modules()) == 7
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert len(trained) == 14
    for name, weight in trained.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, trainer.model.get_parameter(name.replace(".default.", ".ref.")))
    begun = start_figures(trainer.evaluate(), loss_at_reference("sigmoid", training.settings.beta))
    assert begun["step0_loss"] == pytest.approx(begun["step0_expected"], abs=1e-6)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < begun["step0_loss"] / 2
    resumed = tiny.built(training)
    last = training.work / f"checkpoint-{tiny.STEPS}"
    resumed.train(resume_from_checkpoint=str(last))  # which has no step left to do
    for name, weight in load_file(last / WEIGHTS).items():
        assert torch.equal(weight, resumed.model.get_parameter(name.replace(".weight", ".default.weight"))), name
