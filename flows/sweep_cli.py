"""`nothing-gpt sweep`: several settings compared."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from flows.options import DEFAULT, Overrides, SettingsFiles, load, out, workshop_of
from flows.record import SWEEPS, last_sweep
from flows.server import prefect_server
from nothing_gpt.config import Settings, SweepSettings
from nothing_gpt.progress import say
from nothing_gpt.report.sweep import COMPARED, NOTES, sweep_decision, sweep_table
from nothing_gpt.store import Store
from nothing_gpt.sweeps import points_of, read_sweep

PAGE = "sweep.html"


def sweep(
    which: Annotated[str, typer.Argument(metavar="NAME|FILE", help="One of deployments/sweeps, or a YAML file.")],
    settings_files: SettingsFiles = DEFAULT,
    overrides: Overrides = None,
    halving: Annotated[bool, typer.Option(help="Only the better half goes on after a third of the epochs.")] = False,
    promote: Annotated[bool, typer.Option(help="Promote the best point that passes the gate.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be done, and what it costs.")] = False,
) -> None:
    """Compare settings: a run for each, best first, and whether they really differ.

    What several points share is done once. One that fails does not end the sweep; run it again to go on.
    """
    chosen, settings = read_sweep(which), load(settings_files, overrides)
    points = points_of(chosen, settings)
    if dry_run:
        from flows.plan_table import show_plan
        from flows.sweep_plan import sweep_plan

        for number, point in enumerate(points, 1):
            out.print(f"{number}  {point.name}", markup=False)
        show_plan(sweep_plan(points, halving), [point.settings for point in points], at_most=halving)
        return
    with prefect_server(settings):
        _run(chosen, settings, halving, promote)


def _run(chosen: SweepSettings, settings: Settings, halving: bool, promote: bool) -> None:
    from flows.sweep import dpo_sweep

    store = workshop_of(settings).store
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
