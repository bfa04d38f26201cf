"""The losses against values computed by hand. Against TRL's own they are held in `tests/chain/test_trl.py`."""

from math import exp, log

import numpy as np
import pytest

from nothing_gpt.losses import MOST_SMOOTHING, LogRatios, flip_rate, loss_at_reference, preference_loss

BETA = 0.5
RATIOS = LogRatios.of([2.0, -1.0, 0.0], [-2.0, 1.0, 0.0], [4, 2, 1], [2, 4, 1])
"""A pair that is told apart by 4 nats, one that is got wrong by 2, and one that is not told apart."""


def log1pexp(x: float) -> float:
    return log(1 + exp(x))


@pytest.mark.parametrize(
    ("loss_type", "by_hand"),
    [
        ("sigmoid", [log1pexp(-2), log1pexp(1), log(2)]),
        ("hinge", [0, 2, 1]),
        # Per token the margins are 2/4 + 2/2 = 1.5 and -1/2 - 1/4 = -0.75, and 1 / (2 beta) is 1.
        ("ipo", [0.25, 3.0625, 1]),
        ("sigmoid_norm", [log1pexp(-0.75), log1pexp(0.375), log(2)]),
        ("robust", [(0.9 * log1pexp(-2) - 0.1 * log1pexp(2)) / 0.8,
                    (0.9 * log1pexp(1) - 0.1 * log1pexp(-1)) / 0.8, log(2)]),
        ("apo_zero", [2 / (1 + exp(1)), 2 / (1 + exp(-0.5)), 1]),
    ],
)  # fmt: skip
def test_each_loss_is_what_its_paper_says(loss_type: str, by_hand: list[float]) -> None:
    losses = preference_loss(loss_type, RATIOS, BETA, label_smoothing=0.1 if loss_type == "robust" else 0)
    assert losses == pytest.approx(by_hand)


def test_where_policy_and_reference_agree_the_usual_losses_are_ln_2() -> None:
    for loss_type in ("sigmoid", "robust", "sigmoid_norm"):
        assert loss_at_reference(loss_type, 0.1, 0.2) == pytest.approx(log(2))


def test_the_other_losses_have_a_value_of_their_own_there() -> None:
    assert loss_at_reference("hinge", 0.1) == 1
    assert loss_at_reference("apo_zero", 0.1) == pytest.approx(1)
    assert loss_at_reference("ipo", 0.1) == pytest.approx(25)


def test_the_robust_loss_without_smoothing_is_dpo_s() -> None:
    assert preference_loss("robust", RATIOS, BETA) == pytest.approx(preference_loss("sigmoid", RATIOS, BETA))


def test_over_flipped_labels_the_robust_loss_is_on_average_dpo_s_on_the_right_ones() -> None:
    swapped = LogRatios(RATIOS.rejected, RATIOS.chosen, RATIOS.rejected_tokens, RATIOS.chosen_tokens)
    mean = 0.8 * preference_loss("robust", RATIOS, BETA, 0.2) + 0.2 * preference_loss("robust", swapped, BETA, 0.2)
    assert mean == pytest.approx(preference_loss("sigmoid", RATIOS, BETA))


def test_huge_margins_give_no_overflow() -> None:
    for loss_type in ("sigmoid", "hinge", "ipo", "robust", "apo_zero", "sigmoid_norm"):
        assert np.isfinite(preference_loss(loss_type, LogRatios.of([1e4, -1e4], [-1e4, 1e4]), 1.0, 0.1)).all()


@pytest.mark.parametrize(("wrong", "agreement"), [(0.0, 1.0), (0.1, 0.82), (0.25, 0.625)])
def test_a_judge_s_error_follows_from_how_often_its_two_votes_agree(wrong: float, agreement: float) -> None:
    assert flip_rate(agreement) == pytest.approx(wrong)


def test_a_judge_that_tosses_a_coin_is_smoothed_as_far_as_the_loss_bears() -> None:
    assert flip_rate(0.5) == flip_rate(0.1) == MOST_SMOOTHING
