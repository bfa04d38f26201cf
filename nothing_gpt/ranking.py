"""What came of a sweep: its points, best first, and which of them the best really differs from.

Points are ordered by whether the gate would let them through, then by win rate, then by accuracy. They are compared in
pairs on what both did: on the validation pairs that both have, by whether each told chosen from rejected, and on the
held-out prompts that both were compared to the starting adapter on. Since the best is found by the same figures, the
p-values of all pairs of points are corrected together (Holm), not only those against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from nothing_gpt.intervals import CONFIDENCE
from nothing_gpt.paired import Paired, holm, sequential_sign_test, sign_test

LEFT_OUT = "left out"
ACCURACY, WIN_RATE = "accuracy", "win rate"


@dataclass(frozen=True)
class Outcome:
    """What came of one point: the summaries of its runs, the last one last, and the outcomes by which it is compared.

    `right` says of each validation pair, by its id, whether it was told apart (1 or 0); `scores` of each held-out
    prompt whether the adapter won (1), lost (0) or neither (1/2) against the starting one.
    """

    name: str
    runs: Sequence[Mapping[str, Any]]
    error: str | None = None
    left_out: bool = False
    right: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the gate would let it through."""
        return self.status == "passed"

    @property
    def measured(self) -> bool:
        """Whether it came to the gate."""
        return self.status in ("passed", "refused")

    @property
    def status(self) -> str:
        """`passed` or `refused` by the gate, `left out` after the first budget, or `failed`."""
        gate = self.runs[-1].get("gate") if self.runs else None
        if self.left_out:
            return LEFT_OUT
        if gate:
            return "passed" if gate["passed"] else "refused"
        return "failed"

    @property
    def figures(self) -> dict[str, Any]:
        """Its row of the sweep's table. A stage that several points share was paid for by the first of them."""
        last = self.runs[-1] if self.runs else {}
        training, win = last.get("training") or {}, last.get("win_rate") or {}
        costs = [run.get("cost_usd") for run in self.runs]
        stages = {name: stage.get("artifact") for name, stage in (last.get("stages") or {}).items()}
        return {
            "point": self.name,
            "status": self.status,
            "accuracy": training.get("eval_accuracy"),
            "accuracy_ci": training.get("eval_accuracy_ci"),
            "val_pairs": training.get("val_pairs"),
            "win_rate": win.get("value"),
            "win_rate_ci": win.get("ci"),
            "held_out": win.get("n"),
            "cost_usd": None if None in costs else sum(cost for cost in costs if cost is not None),
            "minutes": sum(run.get("seconds") or 0 for run in self.runs) / 60,
            "error": self.error,
            "run": last.get("run"),
            "stages": {name: key for name, key in stages.items() if key},
        }


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Best first; those that were left out or failed at the end. Equal ones in their order."""
    status = ("passed", "refused", LEFT_OUT, "failed")

    def key(outcome: Outcome) -> tuple[int, float, float]:
        figures = outcome.figures
        return status.index(outcome.status), -(figures["win_rate"] or 0), -(figures["accuracy"] or 0)

    return sorted(outcomes, key=key)


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The table of ranked outcomes. Each row that was measured like the first holds in `against_best`, by measure, on
    how many of `n` units the best was `better` and `worse` than it, and the corrected `p`; `differs` is whether one
    of them is below 0.05."""
    whole = [outcome for outcome in outcomes if outcome.measured]
    compared = [
        (first.name, second.name, measure, paired)
        for first, second in combinations(whole, 2)
        for measure, paired in _comparisons(first, second)
        if paired.n
    ]
    corrected = holm([paired.p for *_, paired in compared])
    table = {outcome.name: outcome.figures | {"against_best": {}, "differs": None} for outcome in outcomes}
    for (first, second, measure, paired), p in zip(compared, corrected, strict=True):
        if first == outcomes[0].name:
            table[second]["against_best"][measure] = paired._replace(p=p)._asdict()
            table[second]["differs"] = bool(table[second]["differs"]) or p < 1 - CONFIDENCE
    return list(table.values())


def _comparisons(first: Outcome, second: Outcome) -> list[tuple[str, Paired]]:
    # The evaluation asks for more prompts only while a win rate is undecided.
    return [
        (ACCURACY, sign_test(first.right, second.right)),
        (WIN_RATE, sequential_sign_test(first.scores, second.scores)),
    ]
