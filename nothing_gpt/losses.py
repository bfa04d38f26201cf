"""The preference losses as pure functions of log-ratios: what TRL minimises, written to be read and checked.

TRL computes its own; tests hold the two together. Here they say what the loss of a policy that equals its reference
must be, which is how a wrong reference is noticed before the first update.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
MOST_SMOOTHING = 0.45
"""Label smoothing above which the robust loss, which divides by 1 - 2 times it, is mostly noise."""


@dataclass(frozen=True)
class LogRatios:
    """Per pair, the log-probability of a completion under the policy minus that under the reference (nats), summed over
    its tokens, and the number of these tokens; all of shape (pairs,)."""

    chosen: Array
    rejected: Array
    chosen_tokens: Array
    rejected_tokens: Array

    @classmethod
    def of(
        cls, chosen: ArrayLike, rejected: ArrayLike, chosen_tokens: ArrayLike = 1, rejected_tokens: ArrayLike = 1
    ) -> "LogRatios":
        """Log-ratios from anything array-like; the token counts matter to `ipo` and `sigmoid_norm` only."""
        values = (chosen, rejected, chosen_tokens, rejected_tokens)
        return cls(*np.broadcast_arrays(*(np.asarray(value, float) for value in values)))

    @property
    def margin(self) -> Array:
        """Chosen minus rejected (nats)."""
        return self.chosen - self.rejected

    @property
    def margin_per_token(self) -> Array:
        """The same, each side divided by its length."""
        return self.chosen / self.chosen_tokens - self.rejected / self.rejected_tokens


def preference_loss(loss_type: str, ratios: LogRatios, beta: float, label_smoothing: float = 0.0) -> Array:
    """The loss of each pair, shape (pairs,). `label_smoothing` is the share of labels taken to be flipped, and only
    `robust` knows it.

    Raises:
        KeyError: no such loss.
    """
    return _LOSSES[loss_type](ratios, beta, label_smoothing)


def loss_at_reference(loss_type: str, beta: float, label_smoothing: float = 0.0) -> float:
    """The loss of a policy that equals its reference: every log-ratio is 0."""
    return float(preference_loss(loss_type, LogRatios.of(0, 0), beta, label_smoothing))


def flip_rate(agreement: float) -> float:
    """How often one vote of a judge is wrong (0 to `MOST_SMOOTHING`), from how often two of its votes agree (0 to 1).

    Two independent votes that are each wrong with probability e disagree with probability 2e(1 - e); this is solved for
    e. Pairs are kept only where both agree, so if errors were independent fewer labels would be flipped; one judge's
    errors are not, and this is the careful reading.
    """
    disagreement = min(1 - agreement, 0.5)
    return min((1 - sqrt(1 - 2 * disagreement)) / 2, MOST_SMOOTHING)


def _sigmoid(ratios: LogRatios, beta: float, _: float) -> Array:
    """DPO, equation 7 of Rafailov et al. 2023 (arXiv 2305.18290)."""
    return _minus_log_sigmoid(beta * ratios.margin)


def _hinge(ratios: LogRatios, beta: float, _: float) -> Array:
    """The hinge loss of SLiC-HF (Zhao et al. 2023, arXiv 2305.10425) on DPO's log-ratios (Liu et al. 2023, arXiv
    2309.06657)."""
    return np.maximum(0, 1 - beta * ratios.margin)


def _ipo(ratios: LogRatios, beta: float, _: float) -> Array:
    """IPO, equation 17 of Azar et al. 2023 (arXiv 2310.12036), with beta as its tau and, as its authors do, log-ratios
    per token."""
    return (ratios.margin_per_token - 1 / (2 * beta)) ** 2


def _robust(ratios: LogRatios, beta: float, label_smoothing: float) -> Array:
    """Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409): over labels flipped with probability `label_smoothing`, its
    mean is DPO's loss on the right ones."""
    right, flipped = _minus_log_sigmoid(beta * ratios.margin), _minus_log_sigmoid(-beta * ratios.margin)
    return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def _apo_zero(ratios: LogRatios, beta: float, _: float) -> Array:
    """APO-zero, equation 7 of D'Oosterlinck et al. 2024 (arXiv 2408.06266): raises chosen and lowers rejected."""
    return 1 - _logistic(beta * ratios.chosen) + _logistic(beta * ratios.rejected)


def _sigmoid_norm(ratios: LogRatios, beta: float, _: float) -> Array:
    """DPO with log-ratios per token, as in Tülu 3 (Lambert et al. 2024, arXiv 2411.15124); its beta is tens of times
    larger than DPO's."""
    return _minus_log_sigmoid(beta * ratios.margin_per_token)


_LOSSES: dict[str, Callable[[LogRatios, float, float], Array]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "apo_zero": _apo_zero,
    "sigmoid_norm": _sigmoid_norm,
}


def _minus_log_sigmoid(x: Any) -> Array:
    return np.logaddexp(0, -x)


def _logistic(x: Any) -> Array:
    return np.exp(-_minus_log_sigmoid(x))
