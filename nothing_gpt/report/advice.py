"""What the figures of a run suggest to do next: rules of thumb with the settings to change, not requirements.

`training_checks` holds every key metric of a DPO training against the range that is healthy; what is not, says what to
do. Log-probabilities, and the reward of the rejected side, only show where it comes from: what to do is said by the
rewards and margins that follow from them. The thresholds are the tuning guide's.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Summary = Mapping[str, Any]

STRONG_ACCURACY = 0.7
LEAST_ACCURACY = 0.55
LEAST_FALL = 0.007
"""Share of the loss before training by which it must have fallen for accuracy and margin to mean anything: 0.005 of
ln 2. Accuracy counts a difference of any size, and the first small steps already point the right way."""
OVERFITTING = 0.1
"""How far (share of it) the validation loss may lie over its lowest, or over the training's last, and the margin under
its highest, before we say so."""


@dataclass(frozen=True)
class Check:
    """A key metric: its value as text, what is healthy, whether it is, and what to do where it is not."""

    name: str
    value: str
    healthy: str
    ok: bool
    advice: str = ""


def start_loss(summary: Summary) -> float:
    """The loss of a policy that equals its reference: ln 2 for the standard loss."""
    return (summary.get("training") or {}).get("step0_expected", math.log(2))


def advice(summary: Summary) -> list[str]:
    """What to do next, the most important first."""
    return [
        *(check.advice for check in training_checks(summary) if not check.ok and check.advice),
        *_after_training(summary),
    ]


def training_checks(summary: Summary) -> list[Check]:
    """The key metrics that the run has, in the order they are looked at."""
    return list(_training_checks(summary.get("training") or {}, start_loss(summary)))


def _training_checks(training: Mapping[str, Any], expected: float) -> Iterator[Check]:
    step0, accuracy, margin = (training.get(key) for key in ("step0_loss", "eval_accuracy", "eval_margin"))
    unmoved = False
    if step0 is not None:
        yield Check(
            "loss before training",
            f"{step0:.4f}",
            f"{expected:.4f} within 0.02",
            abs(step0 - expected) <= 0.02,
            f"The loss before training is {step0:.4f} and not {expected:.4f}: the reference is not the adapter that "
            "training started from. Mend this first; no other figure means anything until then.",
        )
    if step0 is not None and training.get("eval_loss") is not None:
        loss = min(training["eval_loss"], training.get("lowest_eval_loss", training["eval_loss"]))
        unmoved = step0 - loss < LEAST_FALL * step0
        yield Check(
            "loss after training",
            f"{step0:.4f} → {loss:.4f}",
            f"lower by {LEAST_FALL:.1%} or more",
            not unmoved,
            f"The validation loss hardly fell, from {step0:.4f} to {loss:.4f}: the updates were too few or too small, "
            f"whatever accuracy and margin say. {_more_training(training)}",
        )
    if accuracy is not None:
        strong = " (strong)" if accuracy > STRONG_ACCURACY and not unmoved else ""
        yield Check(
            "rewards/accuracies",
            f"{accuracy:.3f}{strong}",
            f"above {LEAST_ACCURACY}; above {STRONG_ACCURACY} is strong",
            accuracy >= LEAST_ACCURACY,
            f"Validation accuracy is {accuracy:.3f}, below {LEAST_ACCURACY}: the adapter hardly learned the "
            "preferences. Lower training.beta to 0.05, so that it may move further, or train for longer at a higher "
            "learning rate.",
        )
    if margin is not None:
        highest = training.get("highest_eval_margin", margin)
        yield Check(
            "rewards/margins",
            f"{margin:.3f}",
            "above 0, and growing",
            margin > 0 and margin >= highest * (1 - OVERFITTING),
            f"The validation margin fell again, from {highest:.3f} to {margin:.3f}: the last updates undid what was "
            "learned. Lower training.learning_rate or training.num_train_epochs."
            if margin > 0
            else f"The validation margin is {margin:.3f}: on average the adapter prefers the rejected completion. Look "
            "at the report's pairs: if the judge is right, train for longer at a higher training.learning_rate.",
        )
    yield from _rewards_and_probabilities(training)
    yield from _losses(training)


def _more_training(training: Mapping[str, Any]) -> str:
    steps, warmup = training.get("steps"), training.get("warmup_steps")
    if steps is not None and warmup is not None and warmup >= steps:
        return (
            f"All {steps} updates were within the warm-up of {warmup}: set training.warmup_steps to 0.1, a share of "
            "them, and raise training.num_train_epochs or make more pairs."
        )
    return "Raise training.learning_rate or training.num_train_epochs, or make more pairs."


def _rewards_and_probabilities(training: Mapping[str, Any]) -> Iterator[Check]:
    chosen, rejected = training.get("eval_rewards_chosen"), training.get("eval_rewards_rejected")
    if chosen is not None and rejected is not None:
        yield Check(
            "rewards/chosen",
            f"{chosen:.3f}",
            "0 or above",
            chosen >= 0,
            f"The reward of the chosen completions fell to {chosen:.3f}: they became less probable along with the "
            "rejected ones. Raise training.sft_weight (0.2 to 1), or training.beta.",
        )
        yield Check("rewards/rejected", f"{rejected:.3f}", "below that of the chosen", rejected < chosen)
    for side in ("chosen", "rejected"):
        before, after = training.get(f"step0_logps_{side}"), training.get(f"eval_logps_{side}")
        if before is not None and after is not None:
            rise, other = after - before, (training["eval_logps_chosen"] - training["step0_logps_chosen"])
            healthy = "not lower than before" if side == "chosen" else "rises less than that of the chosen"
            yield Check(
                f"logps/{side}",
                f"{before:.1f} → {after:.1f}",
                healthy,
                rise >= 0 if side == "chosen" else rise < other,
            )


def _losses(training: Mapping[str, Any]) -> Iterator[Check]:
    loss, lowest, last = (training.get(key) for key in ("eval_loss", "lowest_eval_loss", "last_train_loss"))
    if loss is None or lowest is None:
        return
    rose = loss > lowest * (1 + OVERFITTING)
    yield Check(
        "eval_loss",
        f"{loss:.4f}",
        "falls to the end",
        not rose,
        f"The validation loss rose again, from {lowest:.4f} to {loss:.4f}: training overfits. Lower "
        "training.num_train_epochs, or make more pairs.",
    )
    # A smoothed loss, or one with a supervised term, is not the one that is evaluated.
    if last is not None and not (training.get("label_smoothing") or training.get("sft_weight")):
        yield Check(
            "eval_loss over the training's",
            f"{loss - last:+.4f}",
            "close to 0",
            rose or loss - last <= 0.5 * abs(last) + OVERFITTING,
            f"The validation loss {loss:.4f} lies far over the training's last, {last:.4f}: it learns its pairs by "
            "heart. Lower training.num_train_epochs or training.learning_rate, or make more pairs.",
        )


def _after_training(summary: Summary) -> Iterator[str]:
    win, training, data = (summary.get(key) or {} for key in ("win_rate", "training", "data"))
    accuracy = training.get("eval_accuracy")
    if accuracy is not None and accuracy > LEAST_ACCURACY and win.get("ci") and not win["ci"][0] > 0.5:
        yield (
            "Validation accuracy is good, but the win rate is not surely above 0.5: the adapter tells the "
            "pairs apart without writing better text. Raise training.beta to 0.3, so that it stays closer "
            "to where it started, and read the report's comparisons to see whether the judge is right."
        )
    warnings = summary.get("warnings") or []
    yield from warnings
    longer, chance = data.get("longer_chosen"), data.get("longer_chosen_p")
    said = any("max_longer_chosen" in warning for warning in warnings)
    if longer is not None and chance is not None and chance < 0.05 and not said:
        side, wish = ("longer", "length") if longer > 0.5 else ("shorter", "brevity")
        yield (
            f"The {side} completion is chosen in {max(longer, 1 - longer):.0%} of the pairs "
            f"(p = {chance:.2g}): the adapter may learn {wish} instead of quality. Read the report's "
            "pairs, and tell the judge to ignore length."
        )
