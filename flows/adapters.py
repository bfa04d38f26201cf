"""`nothing-gpt adapters`: what was promoted, and what is current. Shown, promoted by hand, taken back, put right."""

import getpass
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from flows.options import DEFAULT, Overrides, SettingsFiles, load, out, workshop_of
from nothing_gpt.artifacts import Workshop
from nothing_gpt.errors import FatalError
from nothing_gpt.progress import say
from nothing_gpt.serve.registry import Approval, Registry, Rollback, Version, read_registry

adapters = typer.Typer(no_args_is_help=True, help="The promoted adapters.")
Reason = Annotated[str, typer.Option(help="Why; it is recorded with your name.")]


@adapters.command("list")
def list_adapters(settings_files: SettingsFiles = DEFAULT, overrides: Overrides = None) -> None:
    """List the promoted versions; the arrow marks the current one."""
    registry = read_registry(workshop_of(load(settings_files, overrides)).store)
    table = Table("", "version", "name", "fingerprint", "accuracy", "win rate", "", box=None)
    for version in registry.versions:
        figures = (version.metrics.get(name) for name in ("eval_accuracy", "win_rate"))
        table.add_row(
            "->" if version.version == registry.current else "",
            str(version.version),
            version.name,
            version.fingerprint,
            *("" if figure is None else f"{figure:.3f}" for figure in figures),
            "" if version.version == registry.current else _standing(registry, version),
        )
    out.print(table if registry.versions else "nothing is promoted yet")


@adapters.command()
def show(
    version: Annotated[int, typer.Argument(metavar="VERSION", help="As `adapters list` numbers it.")],
    settings_files: SettingsFiles = DEFAULT,
    overrides: Overrides = None,
) -> None:
    """Show all that is known of a version: what made it, why it was promoted, who approved."""
    workshop = workshop_of(load(settings_files, overrides))
    registry = read_registry(workshop.store)
    found = registry.version(version)
    if found is None:
        raise FatalError(f"adapters show: no version {version}; see `nothing-gpt adapters list`")
    table = Table.grid(padding=(0, 3))
    for name, value in _told(workshop, registry, found):
        table.add_row(name, Text(value))  # no markup: a reason may hold brackets
    out.print(table, soft_wrap=False)


@adapters.command()
def promote(
    wanted: Annotated[str, typer.Argument(metavar="WHAT", help="A version's number, or STAGE/FINGERPRINT.")],
    reason: Reason,
    without_gate: Annotated[
        bool, typer.Option("--without-gate", help="Also an adapter that no gate has passed; its reasons will say so.")
    ] = False,
    settings_files: SettingsFiles = DEFAULT,
    overrides: Overrides = None,
) -> None:
    """Promote by hand: an earlier version, or an adapter that a run's gate passed and that was not promoted then."""
    settings = load(settings_files, overrides)
    from flows.by_hand import promote_by_hand

    version = promote_by_hand(settings, wanted, Approval(by=_person(), reason=reason), without_gate)
    say(f"{version.name} is version {version.version}, {version.artifact}")


@adapters.command()
def rollback(
    reason: Reason = "none given", settings_files: SettingsFiles = DEFAULT, overrides: Overrides = None
) -> None:
    """Take the current adapter back: the one that it replaced becomes current again, on running servers too."""
    settings = load(settings_files, overrides)
    from flows.serving import called, roll_back_current

    version = roll_back_current(settings, Rollback(by=_person(), reason=reason))
    say(f"{settings.sampling.model} is {called(version)} again")


@adapters.command()
def sync(settings_files: SettingsFiles = DEFAULT, overrides: Overrides = None) -> None:
    """Make the servers serve what the registry says: after a restart, or a promotion that was cut off."""
    settings = load(settings_files, overrides)
    from flows.serving import called, sync_served

    version, strays = sync_served(settings)
    for stray in strays:
        say(f"{stray}: put right")
    say(f"{settings.sampling.model} is {called(version)}, as the registry says")


def _told(workshop: Workshop, registry: Registry, version: Version) -> list[tuple[str, str]]:
    """All that is known of a version: names and values."""
    replaced = f"version {version.replaces}" if version.replaces else "the starting adapter"
    whole = workshop.find(*version.artifact.split("/", 1))
    lines = [
        ("version", f"{version.version} {_standing(registry, version)}".strip()),
        ("name", version.name),
        ("promoted", f"{_time(version.promoted)}, in place {version.place}, instead of {replaced}"),
    ]
    for name, signed in (("approved", version.approval), ("taken back", version.taken_back)):
        lines.append((name, f"{_time(signed.at)}, by {signed.by}: {signed.reason}" if signed else "no"))
    lines += [
        ("artifact", version.artifact),
        ("files", f"whole, in {workshop.folder(whole)}" if whole else "gone from the store, or damaged"),
        ("fingerprint", version.fingerprint),
        ("digest", version.digest),
        *(("metrics", f"{name} {value}") for name, value in version.metrics.items()),
        *(("lineage", f"{stage} {key}") for stage, key in version.lineage.items()),
        *(("reasons", reason) for reason in version.reasons),
    ]
    names = [name for name, _ in lines]
    return [(name if name not in names[:at] else "", value) for at, (name, value) in enumerate(lines)]


def _standing(registry: Registry, version: Version) -> str:
    if version.version == registry.current:
        return "current"
    if version.taken_back:
        return "taken back"
    return "previous" if version.version == registry.previous else ""


def _time(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
