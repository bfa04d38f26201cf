"""`nothing-gpt sweep`: several settings compared."""

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from flows.record import SWEEPS, last_sweep
from flows.server import prefect_server
from nothing_gpt.config import Settings, SweepSettings
from nothing_gpt.loading import PRESETS, load_settings
from nothing_gpt.progress import say
from nothing_gpt.report.sweep import COMPARED, NOTES, sweep_decision, sweep_table
from nothing_gpt.store import Store
from nothing_gpt.sweeps import Point, points_of, read_sweep

PAGE = "sweep.html"
DEFAULT = [PRESETS.with_name("embedded.yaml")]
out = Console(highlight=False, soft_wrap=True)


def sweep(
    which: Annotated[str, typer.Argument(metavar="NAME|FILE", help="One of deployments/sweeps, or a YAML file.")],
    settings_files: Annotated[
        list[Path], typer.Option("--settings", help="YAML file of what all points have in common; as for run.")
    ] = DEFAULT,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="group.key=value for all points.")] = None,
    halving: Annotated[bool, typer.Option(help="Only the better half goes on after a third of the epochs.")] = False,
    promote: Annotated[bool, typer.Option(help="Promote the best point that passes the gate.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be done, and what it costs.")] = False,
) -> None:
    """Compare settings: a run for each, best first, and whether they really differ.

    What several points share is done once. One that fails does not end the sweep; run it again to go on.
    """
    chosen, settings = read_sweep(which), load_settings(settings_files, overrides or ())
    points = points_of(chosen, settings)
    if dry_run:
        with prefect_server(settings) if settings.place.gcp_block else nullcontext():
            _show_plan(points, halving)
        return
    with prefect_server(settings):
        _run(chosen, settings, halving, promote)


def _run(chosen: SweepSettings, settings: Settings, halving: bool, promote: bool) -> None:
    from flows.sweep import dpo_sweep
    from tasks.place import make_place

    store = make_place(settings).workshop.store
    groups: dict[str, Any] = {name: getattr(settings, name) for name in Settings.model_fields}
    earlier = last_sweep(store)
    try:
        dpo_sweep(sweep=chosen, halving=halving, promote=promote, **groups)
    finally:
        if (summary := last_sweep(store)) and summary != earlier:
            _show(summary, store, Path(settings.place.data))


def _show(summary: dict[str, Any], store: Store, data: Path) -> None:
    shown = sweep_table(summary)
    compared = {row["point"]: row.pop(COMPARED) for row in shown}
    table = Table(*(Column(name, overflow="fold") for name in shown[0]), box=None)
    for row in shown:
        table.add_row(*(escape(value.replace(" [", "\n[")) for value in row.values()))  # 80 columns: an interval below
    out.print(table, soft_wrap=False)
    for note in NOTES:
        out.print(note, markup=False, style="dim")
    for point, comparison in compared.items():
        if comparison:
            out.print(f"{point}: {comparison}", markup=False)
    verdict = sweep_decision(summary)
    for line in (verdict.headline, *verdict.details):
        out.print(line, markup=False)
    shutil.copyfile(store.fetch(f"{SWEEPS}/{summary['sweep']}/report.html"), data / PAGE)
    say(f"Report: {data / PAGE}")


def _show_plan(points: Sequence[Point], halving: bool) -> None:
    from flows.sweep_plan import sweep_plan

    steps = sweep_plan(points, halving)
    for number, point in enumerate(points, 1):
        out.print(f"{number}  {point.name}", markup=False)
    table = Table("stage", "status", "points", "rows", "calls", "expected USD", box=None)
    for step in steps:
        planned = step.planned
        table.add_row(
            planned.stage + (f" ({step.budget})" if step.budget else ""),
            planned.status,
            "all" if len(step.points) == len(points) else ", ".join(map(str, step.points)),
            *("" if value is None else f"{value:,}" for value in (planned.rows, planned.calls)),
            "" if planned.usd is None else f"{planned.usd:.2f}",
        )
    out.print(table)
    asked = [step.planned for step in steps if step.planned.status != "cached"]
    calls, usd = (sum(getattr(planned, name) or 0 for planned in asked) for name in ("calls", "usd"))
    priceless = {step.stage for step in asked if step.calls and step.usd is None and step.stage != "generate_pairs"}
    out.print(
        f"{'at most' if halving else 'expected'}: {calls:,} calls, {usd:.2f} USD"
        + (f", without {', '.join(sorted(priceless))}: the judge's price is not in judge.prices" if priceless else "")
    )
