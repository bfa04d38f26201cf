"""The presets: each can be loaded alone and over a place's settings; `recommended` is what is done unasked."""

from pathlib import Path

import pytest
import yaml

from nothing_gpt.config import TrainingSettings
from nothing_gpt.loading import load_settings

DEPLOYMENTS = Path(__file__).parents[1] / "deployments"
PRESETS = sorted((DEPLOYMENTS / "presets").glob("*.yaml"))


def training(name: str) -> TrainingSettings:
    return load_settings(DEPLOYMENTS / "presets" / f"{name}.yaml").training


def test_the_presets_are_those_that_are_documented() -> None:
    names = ["aggressive", "guide", "length_norm", "noisy_judge", "recommended", "smoke"]
    assert [preset.stem for preset in PRESETS] == names


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_a_preset_changes_what_it_names_and_leaves_the_rest_of_a_place(preset: Path) -> None:
    embedded = load_settings(DEPLOYMENTS / "embedded.yaml")
    both = load_settings([DEPLOYMENTS / "embedded.yaml", preset])
    named = yaml.safe_load(preset.read_text())
    assert both.training.model_dump() == embedded.training.model_dump() | named["training"]
    assert both.sampling == embedded.sampling
    assert both.place == embedded.place


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_a_preset_says_where_its_numbers_come_from(preset: Path) -> None:
    assert "# From: " in preset.read_text()


def test_recommended_is_the_default_but_for_gradient_checkpointing() -> None:
    assert training("recommended") == TrainingSettings(gradient_checkpointing=True)


def test_the_guide_s_preset_has_the_guide_s_values() -> None:
    assert training("guide") == TrainingSettings(
        beta=0.1, loss_type="sigmoid", learning_rate=5e-6, num_train_epochs=1, lr_scheduler_type="cosine",
        warmup_steps=20, per_device_train_batch_size=2, per_device_eval_batch_size=1, gradient_accumulation_steps=8,
        max_length=2048, bf16=True, gradient_checkpointing=False, eval_steps=25, save_steps=25, logging_steps=10,
        quantization="nf4", precompute_ref_log_probs=False,
    )  # fmt: skip


def test_a_noisy_judge_s_smoothing_is_measured() -> None:
    assert (training("noisy_judge").loss_type, training("noisy_judge").label_smoothing) == ("robust", "measured")


def test_every_training_setting_says_what_it_does() -> None:
    for name, field in TrainingSettings.model_fields.items():
        assert len(field.description or "") > 20, name
