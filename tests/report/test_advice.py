"""Advice: every key metric of training against its healthy range, and what to change where it is outside."""

from typing import Any

import pytest

from nothing_gpt.report.advice import advice, training_checks
from tests.report import samples

FIRST_RUN = {"step0_loss": 1.588, "eval_accuracy": 0.461, "eval_margin": -0.345}
"""As the guide's first run went, with the wrong reference."""
WHOLE = {
    "step0_loss": 0.6931, "eval_accuracy": 0.72, "eval_margin": 0.4, "eval_rewards_chosen": 0.1,
    "eval_rewards_rejected": -0.3, "step0_logps_chosen": -90.0, "eval_logps_chosen": -89.0,
    "step0_logps_rejected": -95.0, "eval_logps_rejected": -98.0,
    "eval_loss": 0.55, "lowest_eval_loss": 0.55, "last_train_loss": 0.5,
}  # fmt: skip


def test_nothing_measured_nothing_said() -> None:
    assert advice({}) == training_checks({}) == []


def test_a_good_run_needs_no_advice() -> None:
    assert advice(samples.full_summary()) == []


@pytest.mark.parametrize(
    ("group", "figures", "word"),
    [
        ("training", {"eval_accuracy": 0.54}, "Lower training.beta to 0.05"),
        ("training", {"eval_margin": -0.345}, "on average the adapter prefers the rejected"),
        ("training", {"eval_margin": 0.2, "highest_eval_margin": 0.3}, "fell again, from 0.300 to 0.200"),
        ("training", {"eval_rewards_chosen": -0.1, "eval_rewards_rejected": -0.5}, "Raise training.sft_weight"),
        ("training", {"eval_loss": 0.7, "lowest_eval_loss": 0.6}, "Lower training.num_train_epochs, or"),
        ("training", {"eval_loss": 0.5, "lowest_eval_loss": 0.5, "last_train_loss": 0.1}, "by heart"),
        ("win_rate", {"ci": [0.49, 0.6]}, "Raise training.beta"),
        ("training", {"step0_loss": 1.588}, "the reference is not the adapter"),
        ("training", {"step0_loss": float("nan")}, "the reference is not the adapter"),
        ("data", {"longer_chosen": 0.6, "longer_chosen_p": 0.01}, "The longer completion is chosen in 60%"),
        ("data", {"longer_chosen": 0.4, "longer_chosen_p": 0.01}, "The shorter completion is chosen in 60%"),
    ],
)
def test_each_warning_figure_has_its_own_advice(group: str, figures: dict[str, Any], word: str) -> None:
    summary = samples.full_summary()
    summary[group] |= figures
    (hint,) = advice(summary)
    assert word in hint


def test_every_key_metric_is_held_against_its_healthy_range() -> None:
    checks = {check.name: check for check in training_checks({"training": WHOLE})}
    assert list(checks) == [
        "loss before training", "loss after training", "rewards/accuracies", "rewards/margins", "rewards/chosen",
        "rewards/rejected", "logps/chosen", "logps/rejected", "eval_loss", "eval_loss over the training's",
    ]  # fmt: skip
    assert all(check.ok for check in checks.values())
    assert checks["rewards/accuracies"].value == "0.720 (strong)"
    assert checks["logps/rejected"].value == "-95.0 → -98.0"


@pytest.mark.parametrize(
    ("figures", "unhealthy"),
    [
        ({"eval_rewards_rejected": 0.2}, "rewards/rejected"),
        ({"eval_logps_chosen": -91.0}, "logps/chosen"),
        ({"eval_logps_rejected": -93.0}, "logps/rejected"),
    ],
)
def test_a_metric_that_only_hints_is_marked_and_gives_no_advice(figures: dict[str, float], unhealthy: str) -> None:
    summary = {"training": WHOLE | figures}
    assert [check.name for check in training_checks(summary) if not check.ok] == [unhealthy]
    assert advice(summary) == []


GUIDE = WHOLE | {
    "eval_loss": 0.6931, "lowest_eval_loss": 0.6931, "last_train_loss": 0.6931, "eval_accuracy": 0.857,
    "eval_margin": 0.0001, "steps": 8, "warmup_steps": 20,
}  # fmt: skip
"""As the guide's values go: they end before their warm-up does."""


def test_a_budget_too_small_to_learn_is_seen_whatever_the_accuracy() -> None:
    checks = {check.name: check for check in training_checks({"training": GUIDE})}
    assert [name for name, check in checks.items() if not check.ok] == ["loss after training"]
    assert checks["rewards/accuracies"].value == "0.857"
    (hint,) = advice({"training": GUIDE})
    assert "hardly fell, from 0.6931 to 0.6931" in hint
    assert "All 8 updates were within the warm-up of 20: set training.warmup_steps to 0.1" in hint
    (hint,) = advice({"training": GUIDE | {"warmup_steps": 1}})
    assert "Raise training.learning_rate or training.num_train_epochs" in hint


def test_losses_that_hold_different_things_are_not_compared() -> None:
    figures = WHOLE | {"last_train_loss": 0.1}
    assert [check.name for check in training_checks({"training": figures}) if not check.ok]
    for other in ({"sft_weight": 0.5}, {"label_smoothing": 0.2}):
        assert all(check.ok for check in training_checks({"training": figures | other}))


def test_a_run_like_the_first_one_is_told_the_cause_before_all_else() -> None:
    first, second, third = advice({"training": FIRST_RUN})
    assert "the reference is not the adapter" in first
    assert "Lower training.beta to 0.05" in second
    assert "prefers the rejected" in third


def test_stated_limits_that_the_data_do_not_keep_are_advice_and_said_once() -> None:
    summary = samples.full_summary()
    summary["data"] |= {"longer_chosen": 0.7, "longer_chosen_p": 1e-9}
    summary["warnings"] = ["judge.max_longer_chosen: the longer completion is chosen in 70.0% of the pairs"]
    assert advice(summary) == summary["warnings"]
