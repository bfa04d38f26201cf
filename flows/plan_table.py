"""A plan on the terminal: the stages of a run, or those that a sweep's points share, and what they will cost."""

from collections.abc import Sequence

from rich.table import Table

from flows.expected import TO_DO
from flows.options import out
from flows.sweep_plan import Shared
from nothing_gpt.config import Settings


def show_plan(steps: Sequence[Shared], points: Sequence[Settings], at_most: bool = False) -> None:
    """Prints the stages of these points, a run being one point. `at_most`: not all of them will be done."""
    several = len(points) > 1
    table = Table("stage", "status", *["points"] * several, "rows", "calls", "expected USD", box=None)
    for step in steps:
        planned = step.planned
        sharing = "all" if len(step.points) == len(points) else ", ".join(map(str, step.points))
        table.add_row(
            planned.stage + (f" ({step.budget})" if step.budget else ""),
            planned.status,
            *[sharing] * several,
            *("" if value is None else f"{value:,}" for value in (planned.rows, planned.calls)),
            "" if planned.usd is None else f"{planned.usd:.2f}",
        )
    out.print(table)
    due = [step.planned for step in steps if step.planned.status == TO_DO]
    calls, usd = sum(planned.calls or 0 for planned in due), sum(planned.usd or 0 for planned in due)
    out.print(f"{'at most' if at_most else 'expected'}: {calls:,} calls, {usd:.2f} USD{_without(steps, points)}")


def _without(steps: Sequence[Shared], points: Sequence[Settings]) -> str:
    """What the sum lacks, as an endpoint of one's own has a price for completions only if one gives it."""
    lacking = [
        step
        for step in steps
        if step.planned.status == TO_DO and step.planned.calls and step.planned.usd is None
        if step.planned.stage != "generate_pairs"
    ]
    if not lacking:
        return ""
    stages = sorted({step.planned.stage for step in lacking})
    judges = sorted({points[step.points[0] - 1].judge.model for step in lacking})
    return f", without {', '.join(stages)}: the price of {', '.join(judges)} is not in judge.prices"
