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
    training: dict[str, Any], win_rate: dict[str, Any], quality: dict[str, Any], settings: GateSettings
) -> Decision:
    """Decides on training's `metrics.json`, the evaluation's win rate and the pairs' `quality.json`."""
    step0, expected = training["step0_loss"], training["step0_expected"]
    return Decision(
        (
            _above(
                "evaluation accuracy", training["eval_accuracy"], training["eval_accuracy_ci"], settings.min_accuracy
            ),
            _above("evaluation margin", training["eval_margin"], training["eval_margin_ci"], settings.min_margin),
            _above("win rate", win_rate["value"], win_rate["ci"], settings.min_win_rate),
            Reason(
                abs(step0 - expected) <= settings.step0_tolerance,
                f"loss before training {step0:.4f}; {expected:.4f} within {settings.step0_tolerance} says that the "
                "reference is the starting adapter",
            ),
            *_data_reasons(quality, settings),
        )
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
