"""A run's closing table for the terminal: stages, figures with intervals, the decision, where the report is.

Everything is said in words, colour only repeats it: printed to a pipe it reads the same.
"""

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nothing_gpt.report.advice import advice
from nothing_gpt.report.summary import Summary, decision, key_figures, stage_lines

_STATUS = {"ran": "green", "cached": "cyan", "failed": "bold red", "skipped": "dim"}
_TONE = {"good": "bold green", "bad": "bold red", "open": "bold yellow"}


def closing_table(summary: Summary, report: str | Path | None = None) -> Group:
    """What a console prints at a run's end; `report` is its page's path. What is missing is left out."""
    parts: list[RenderableType] = []
    stages = stage_lines(summary)
    if stages:
        table = _table("stage", "status", "time", "rows", right=("time", "rows"))
        for stage in stages:
            status = Text(stage.status, _STATUS.get(stage.status, ""))
            table.add_row(Text(stage.name), status, Text(stage.time), Text(stage.rows))
        parts.append(table)
    figures = key_figures(summary)
    if figures:
        table = _table("figure", "value", "95 % interval", "on", right=("value",))
        for figure in figures:
            table.add_row(
                Text(figure.label), Text(figure.value, "bold"), Text(figure.interval), Text(figure.note, "dim")
            )
        parts.append(table)
    verdict = decision(summary)
    parts.append(Text(verdict.headline, _TONE[verdict.tone]))
    parts += [_indented(Text(detail)) for detail in verdict.details]
    for reason in (summary.get("gate") or {}).get("reasons") or []:
        sign = Text("met      ", "green") if reason["passed"] else Text("NOT MET  ", "bold red")
        parts.append(_reason(sign, Text(reason["text"])))
    for hint in advice(summary):
        parts.append(_reason(Text("advice   ", "yellow"), Text(hint)))
    if report is not None:
        parts.append(Text(f"Report: {report}", overflow="fold"))
    return Group(*parts)


def _table(*columns: str, right: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _reason(sign: Text, text: Text) -> RenderableType:
    """A sign and a text beside it that may take several lines."""
    row = Table.grid()
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_row(sign, text)
    return _indented(row)


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, 2), expand=False)
