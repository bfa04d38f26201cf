"""What a sweep's summary says: the decision, one table and one plot, for the terminal, Prefect and an HTML page.

A sweep's summary is the plain dict that `flows/sweep.py` keeps as `summary.json`; its `points` are `ranking.rows`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nothing_gpt.report import plots
from nothing_gpt.report.markdown import table, text
from nothing_gpt.report.page import NO_EXAMPLES, render
from nothing_gpt.report.plots import Plot
from nothing_gpt.report.summary import Decision, dollars, duration, moment

Row = Mapping[str, Any]

COMPARED = "compared with the best"
NOTES = (
    "Cost and minutes are what each point added: what several share was done for the first of them.",
    "Compared with the best: on how many validation pairs (accuracy) and held-out prompts (win rate) the best did "
    "better and did worse, and how likely so uneven a split is by chance, corrected for all pairs of points.",
)


def sweep_decision(summary: Row) -> Decision:
    """The best point, whether it surely differs from the others, and what became of it."""
    points: Sequence[Row] = summary["points"]
    best, passed = points[0], [row for row in points if row["status"] == "passed"]
    details = [f"{row['point']}: {row['error']}" for row in points if row["status"] == "failed" and row["error"]]
    alike = [row["point"] for row in points if row["differs"] is False]
    if best["status"] not in ("passed", "refused"):
        return Decision("bad", "No point was measured", tuple(details))
    if alike:
        details.insert(0, f"Not distinguishable from it (p above 0.05): {'; '.join(alike)}.")
    elif any(row["differs"] for row in points):
        details.insert(0, "It differs from every other that was measured (p below 0.05).")
    if promoted := summary.get("promoted"):
        headline = f"Promoted: {best['point']} is served as {promoted['name']}, version {promoted['version']}"
        return Decision("good", headline, tuple(details))
    if not passed:
        return Decision("bad", f"No point passes the gate; the best is {best['point']}", tuple(details))
    if error := summary.get("error"):
        return Decision("bad", f"Not promoted: {best['point']}", (error, *details))
    return Decision("open" if alike else "good", f"Best: {best['point']}", tuple(details))


def sweep_table(summary: Row) -> list[dict[str, str]]:
    """The points as text, best first."""
    return [
        {
            "point": row["point"],
            "gate": row["status"],
            "accuracy": _estimate(row["accuracy"], row["accuracy_ci"]),
            "win rate": _estimate(row["win_rate"], row["win_rate_ci"]),
            "cost": "" if row["cost_usd"] is None else dollars(row["cost_usd"]),
            "time": duration(row["minutes"] * 60),
            COMPARED: _compared(row),
        }
        for row in summary["points"]
    ]


def sweep_plots(summary: Row) -> list[Plot]:
    """The one plot of all points; none where nothing was measured."""
    rows = [row for row in summary["points"] if row["accuracy"] is not None]
    caption = "With 95 % intervals. Green passes the gate, orange does not, grey was left out after the first budget."
    return [Plot("Points of the sweep", plots.points(rows), caption)] if rows else []


def sweep_markdown(summary: Row) -> str:
    """The summary as GitHub-flavoured Markdown."""
    verdict, shown = sweep_decision(summary), sweep_table(summary)
    parts = [f"# {text(verdict.headline)}", *map(text, verdict.details)]
    if summary["description"]:
        parts.append(f"> {text(summary['description'])}")
    parts += [table([*shown[0]], (row.values() for row in shown)), *NOTES]
    parts.append(f"Report page: `{summary['store']}/sweeps/{summary['sweep']}/report.html`")
    return "\n\n".join(parts) + "\n"


def render_sweep_page(summary: Row, plots: list[Plot]) -> str:
    """The report on a sweep as HTML; `plots` are those of `sweep_plots`."""
    verdict = sweep_decision(summary)
    if description := summary["description"]:
        verdict = replace(verdict, details=(description, *verdict.details))
    return render(
        decision=verdict,
        facts={
            "sweep": summary["sweep"],
            "place": summary["place"],
            "started": moment(summary["started"]),
            "took": duration(summary["seconds"]),
        },
        requirements=[],
        figures=[],
        points=sweep_table(summary),
        notes=NOTES,
        advice=[],
        checks=[],
        stages=[],
        plots=plots,
        data=[],
        characters=[],
        training={},
        pairs=NO_EXAMPLES,
        comparisons=NO_EXAMPLES,
        source="The figures are those of summary.json beside this page; each point's own report is under runs/.",
    )


def _estimate(value: float | None, interval: Sequence[float] | None) -> str:
    bounds = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return "" if value is None else f"{value:.3f}{bounds}"


def _compared(row: Row) -> str:
    measures = [
        f"{measure} {found['better']} : {found['worse']} of {found['n']}, p = {found['p']:.2g}"
        for measure, found in row["against_best"].items()
    ]
    return "; ".join([*(["differs" if row["differs"] else "not distinguishable"] if measures else []), *measures])
