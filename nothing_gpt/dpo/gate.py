"""Stage 6: may the candidate replace the served adapter? A pure function of figures that others measured.

Every bound is on the lower end of a 95 % interval: a candidate that is merely lucky does not pass.
"""

from dataclasses import dataclass
from typing import Any

from nothing_gpt.config import GateSettings
from nothing_gpt.errors import GateFailed


@dataclass(frozen=True)
class Reason:
    """One requirement: whether it is met, and a sentence with its figures."""

    passed: bool
    text: str


@dataclass(frozen=True)
class Decision:
    """The gate's answer. It passes only where every requirement is met."""

    reasons: tuple[Reason, ...]

    @property
    def passed(self) -> bool:
        return all(reason.passed for reason in self.reasons)

    @property
    def failures(self) -> list[str]:
        return [reason.text for reason in self.reasons if not reason.passed]

    def require(self) -> None:
        """Raises GateFailed, with every requirement that is not met, unless all are."""
        if not self.passed:
            raise GateFailed(f"gate: not promoted, because {'; '.join(self.failures)}")


def gate(
    training: dict[str, Any], evaluation: dict[str, Any], quality: dict[str, Any], settings: GateSettings
) -> Decision:
    """Decides on training's and the evaluation's `metrics.json`, and the pairs' `quality.json`."""
    step0, expected = training["step0_loss"], training["step0_expected"]
    return Decision(
        (
            _above(
                "evaluation accuracy", training["eval_accuracy"], training["eval_accuracy_ci"], settings.min_accuracy
            ),
            _above("evaluation margin", training["eval_margin"], training["eval_margin_ci"], settings.min_margin),
            *(
                _above(f"win rate against the {name} adapter", wins["value"], wins["ci"], settings.min_win_rate)
                for name, wins in (
                    ("starting", evaluation["win_rate"]),
                    ("served", evaluation["win_rate_served"]),
                )
                if wins
            ),
            *_behaviour_reasons(evaluation["behaviour"], settings),
            Reason(
                abs(step0 - expected) <= settings.step0_tolerance,
                f"loss before training {step0:.4f}; {expected:.4f} within {settings.step0_tolerance} says that the "
                "reference is the starting adapter",
            ),
            *_data_reasons(quality, settings),
        )
    )


def _behaviour_reasons(figures: dict[str, Any], settings: GateSettings) -> tuple[Reason, ...]:
    before, after = figures["start"], figures["candidate"]
    most = settings.max_length_drift
    return (
        Reason(
            before["length"] / most <= after["length"] <= before["length"] * most,
            f"answers of {after['length']:.0f} characters after {before['length']:.0f}; at most {most:g} times as long "
            "or as short is wanted",
        ),
        Reason(
            after["in_form"] >= before["in_form"] - settings.max_form_loss,
            f"{after['in_form']:.0%} of the lines in form after {before['in_form']:.0%}; a loss of at most "
            f"{settings.max_form_loss:.0%} is wanted",
        ),
        Reason(
            after["repetition"] <= before["repetition"] + settings.max_repetition_gain,
            f"{after['repetition']:.1%} of the 4-grams repeated after {before['repetition']:.1%}; a rise of at most "
            f"{settings.max_repetition_gain:.0%} is wanted",
        ),
    )


def _data_reasons(quality: dict[str, Any], settings: GateSettings) -> tuple[Reason, ...]:
    pairs, agreement, longer = quality["pairs"], quality["agreement"], quality["longer_chosen"]
    reasons = [Reason(pairs >= settings.min_pairs, f"{pairs} pairs; at least {settings.min_pairs} are wanted")]
    if agreement is not None:
        reasons.append(
            Reason(
                agreement >= settings.min_agreement,
                f"the judge's votes agree on {agreement:.0%} of the sets; at least "
                f"{settings.min_agreement:.0%} is wanted",
            )
        )
    if longer is not None:
        reasons.append(
            Reason(
                longer <= settings.max_longer_chosen,
                f"the longer completion is chosen in {longer:.0%} of the pairs; at most "
                f"{settings.max_longer_chosen:.0%} is wanted",
            )
        )
    return tuple(reasons)


def _above(name: str, value: float, interval: list[float], bound: float) -> Reason:
    low, high = interval
    return Reason(low > bound, f"{name} {value:.3f} [{low:.3f}, {high:.3f}]; its lower bound must exceed {bound:g}")
