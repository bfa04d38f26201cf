"""The gate: every requirement alone can close it, every reason is named, and luck rarely opens it."""

import math
from typing import Any

import pytest

from nothing_gpt.config import GateSettings
from nothing_gpt.dpo.gate import Decision, gate

GOOD: dict[str, dict[str, Any]] = {
    "training": {
        "step0_loss": math.log(2),
        "step0_expected": math.log(2),
        "eval_accuracy": 0.8,
        "eval_accuracy_ci": [0.7, 0.88],
        "eval_margin": 0.2,
        "eval_margin_ci": [0.1, 0.3],
    },
    "win_rate": {"value": 0.7, "ci": [0.6, 0.79], "n": 64},
    "win_rate_served": {"value": 0.65, "ci": [0.55, 0.75], "n": 64},
    "behaviour": {"length": 100.0, "in_form": 0.9, "repetition": 0.1},
    "quality": {"pairs": 300, "agreement": 0.6, "longer_chosen": 0.55},
}


def decide(group: str = "training", settings: GateSettings | None = None, **changed: Any) -> Decision:
    figures = GOOD | {group: GOOD[group] | changed}
    evaluation = {
        "win_rate": figures["win_rate"],
        "win_rate_served": figures["win_rate_served"],
        "behaviour": {"start": GOOD["behaviour"], "candidate": figures["behaviour"]},
    }
    return gate(figures["training"], evaluation, figures["quality"], settings or GateSettings())


def test_a_candidate_that_is_better_in_everything_passes() -> None:
    assert decide().passed
    assert decide().failures == []


@pytest.mark.parametrize(
    ("group", "changed", "named"),
    [
        ("training", {"eval_accuracy_ci": [0.5, 0.88]}, "evaluation accuracy 0.800 [0.500, 0.880]"),
        ("training", {"eval_margin_ci": [0.0, 0.3]}, "evaluation margin 0.200 [0.000, 0.300]"),
        ("training", {"step0_loss": math.log(2) + 0.021}, "loss before training 0.7141"),
        ("training", {"step0_loss": math.log(2) - 0.021}, "loss before training 0.6721"),
        ("training", {"step0_loss": 1.588}, "loss before training 1.5880"),
        ("win_rate", {"ci": [0.5, 0.79]}, "win rate against the starting adapter 0.700 [0.500, 0.790]"),
        ("win_rate_served", {"ci": [0.5, 0.75]}, "win rate against the served adapter 0.650 [0.500, 0.750]"),
        ("behaviour", {"length": 201.0}, "answers of 201 characters after 100"),
        ("behaviour", {"length": 49.0}, "answers of 49 characters after 100"),
        ("behaviour", {"in_form": 0.84}, "84% of the lines in form after 90%"),
        ("behaviour", {"repetition": 0.151}, "15.1% of the 4-grams repeated after 10.0%"),
        ("quality", {"pairs": 49}, "49 pairs"),
        ("quality", {"agreement": 0.19}, "agree on 19%"),
        ("quality", {"longer_chosen": 0.81}, "chosen in 81%"),
    ],
)
def test_each_requirement_alone_closes_the_gate(group: str, changed: dict[str, Any], named: str) -> None:
    decision = decide(group, **changed)
    assert not decision.passed
    (failure,) = decision.failures
    assert named in failure


@pytest.mark.parametrize(
    ("group", "changed"),
    [
        ("training", {"eval_accuracy_ci": [math.nan, math.nan]}),
        ("training", {"eval_margin_ci": [math.nan, math.nan]}),
        ("training", {"step0_loss": math.nan}),
        ("win_rate", {"ci": [math.nan, math.nan]}),
        ("behaviour", {"length": 0.0, "in_form": 0.0, "repetition": 0.0}),
        ("quality", {"pairs": 0, "agreement": None, "longer_chosen": None}),
        ("quality", {"agreement": math.nan}),
    ],
)
def test_a_figure_that_could_not_be_had_closes_the_gate(group: str, changed: dict[str, Any]) -> None:
    assert not decide(group, **changed).passed


@pytest.mark.parametrize(
    ("group", "changed"),
    [
        ("training", {"eval_accuracy_ci": [0.501, 0.88]}),
        ("training", {"step0_loss": math.log(2) + 0.019}),
        ("behaviour", {"length": 200.0}),
        ("behaviour", {"length": 50.0}),
        ("quality", {"pairs": 50}),
        ("quality", {"agreement": 0.2}),
        ("quality", {"longer_chosen": 0.8}),
    ],
)
def test_a_requirement_that_is_just_met_leaves_it_open(group: str, changed: dict[str, Any]) -> None:
    assert decide(group, **changed).passed


def test_all_reasons_are_listed_whether_they_pass_or_fail() -> None:
    assert len(decide().reasons) == 11
    bad = gate(
        {
            "step0_loss": 1.6,
            "step0_expected": math.log(2),
            "eval_accuracy": 0.4,
            "eval_accuracy_ci": [0.3, 0.5],
            "eval_margin": -0.3,
            "eval_margin_ci": [-0.5, -0.1],
        },
        {
            "win_rate": {"value": 0.5, "ci": [0.4, 0.6]},
            "win_rate_served": None,
            "behaviour": {
                "start": {"length": 100.0, "in_form": 1.0, "repetition": 0.0},
                "candidate": {"length": 10.0, "in_form": 0.5, "repetition": 0.5},
            },
        },
        {"pairs": 10, "agreement": 0.1, "longer_chosen": 0.9},
        GateSettings(),
    )
    assert len(bad.failures) == 10
    assert all("\n" not in reason for reason in bad.failures)


def test_the_loss_before_training_is_measured_against_that_of_its_own_kind() -> None:
    assert decide(step0_loss=1.0, step0_expected=1.0).passed
    assert not decide(step0_loss=math.log(2), step0_expected=1.0).passed


def test_stricter_settings_close_it() -> None:
    assert not decide(settings=GateSettings(min_win_rate=0.55)).passed
    assert decide(settings=GateSettings(min_win_rate=0.54)).passed


def test_a_first_candidate_has_no_served_adapter_to_beat() -> None:
    evaluation = {"win_rate": GOOD["win_rate"], "win_rate_served": None}
    behaviour = {"start": GOOD["behaviour"], "candidate": GOOD["behaviour"]}
    decision = gate(GOOD["training"], evaluation | {"behaviour": behaviour}, GOOD["quality"], GateSettings())
    assert decision.passed
    assert not any("served" in reason.text for reason in decision.reasons)
