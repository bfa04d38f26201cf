"""A run's summary as Markdown, the decision first: what Prefect shows as the run's artifact."""

import re
from collections.abc import Iterable, Sequence

from nothing_gpt.report.advice import advice
from nothing_gpt.report.summary import Summary, decision, facts, key_figures, stage_lines

_SIGNS = {"good": "✅", "bad": "❌", "open": "⏸️"}


def markdown(summary: Summary) -> str:
    """The summary as GitHub-flavoured Markdown. What is missing is left out."""
    verdict = decision(summary)
    parts = [f"# {_SIGNS[verdict.tone]} {text(verdict.headline)}", *map(text, verdict.details)]
    gate = summary.get("gate") or {}
    if gate.get("reasons"):
        parts.append(
            "\n".join(f"- {'✅' if reason['passed'] else '❌'} {text(reason['text'])}" for reason in gate["reasons"])
        )
    figures = key_figures(summary)
    if figures:
        parts += [
            "## Figures",
            table(
                ("figure", "value", "95 % interval", "on"), ((f.label, f.value, f.interval, f.note) for f in figures)
            ),
        ]
    hints = advice(summary)
    if hints:
        parts += ["## Advice", "\n".join(f"- {text(hint)}" for hint in hints)]
    stages = stage_lines(summary)
    if stages:
        parts += [
            "## Stages",
            table(("stage", "status", "time", "rows"), ((s.name, s.status, s.time, s.rows) for s in stages)),
        ]
    drops = (summary.get("data") or {}).get("drops")
    if drops:
        parts += [
            "## Dropped sets",
            table(("reason", "sets"), ((name, f"{count:,}") for name, count in drops.items())),
        ]
    made = {name: stage["artifact"] for name, stage in (summary.get("stages") or {}).items() if stage.get("artifact")}
    if made:
        parts += ["## Lineage", table(("stage", "artifact"), made.items())]
    if summary.get("store") and summary.get("run"):
        parts.append(f"Report page: {report_page(summary)}")
    if tracked := (summary.get("training") or {}).get("wandb"):
        parts.append(f"Weights & Biases: [{text(tracked)}](<{tracked}>)")
    known = facts(summary)
    if known:
        parts += ["---", " · ".join(f"{name}: {text(value)}" for name, value in known.items())]
    return "\n\n".join(parts) + "\n"


def report_page(summary: Summary) -> str:
    """The address of the run's report page, as a link where a browser can follow it."""
    address = f"{summary['store']}/runs/{summary['run']}/report.html"
    if address.startswith("gs://"):
        return f"[{text(address)}](https://storage.cloud.google.com/{address.removeprefix('gs://')})"
    return f"`{address}`"


def table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; its cells are plain texts."""
    lines = [head, ["---"] * len(head), *([text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(plain: str) -> str:
    """Text that stands for itself: on one line, with no markup of Markdown or HTML."""
    return re.sub(r"([\\`*_|<>#\[\]~])", r"\\\1", " ".join(str(plain).split()))
