"""The `nothing-gpt` program.

Prefect, and with it the flow, is imported only where a command runs something: it takes a second, and it reads its
settings (where its database is, what it prints) when it is imported.
"""

import json
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args

import typer

from flows.adapters import adapters
from flows.options import DEFAULT, EMBEDDED, Overrides, SettingsFiles, load, out, servers, workshop_of
from flows.record import check_until, last_run
from flows.server import prefect_server
from flows.sweep_cli import sweep
from nothing_gpt.adapters import check_output, publish
from nothing_gpt.artifacts import Artifact
from nothing_gpt.config import PlaceSettings, Settings
from nothing_gpt.errors import FatalError, TransientError, exits_cleanly
from nothing_gpt.given import is_here
from nothing_gpt.progress import say
from nothing_gpt.records import read_prompts
from nothing_gpt.report.terminal import closing_table
from nothing_gpt.store import Store

RECOMMENDED = EMBEDDED.parent / "presets" / "recommended.yaml"
ALONE = [RECOMMENDED]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turns an SFT adapter and a file of prompts into a better adapter, and proves it.",
)
app.add_typer(adapters, name="adapters")
app.command()(sweep)
jobs = typer.Typer(no_args_is_help=True, help="The training Jobs on the cluster (place.gke).")
app.add_typer(jobs, name="jobs")

ArtifactKey = Annotated[str, typer.Argument(metavar="ARTIFACT", help="STAGE/FINGERPRINT.")]
Given = Annotated[
    str, typer.Argument(metavar="WHAT", help="STAGE/FINGERPRINT, a file of prompts, or an adapter's folder.")
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="As `jobs list` names it.")]
ImageName = Annotated[Literal["train", "worker", "serve"], typer.Argument(help="A Dockerfile's name.")]


@app.command()
def run(
    settings_files: SettingsFiles = DEFAULT,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="Prompts file, gs:// address or key of pushed prompts; may be given several times."),
    ] = None,
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(help="Sets the seed of every group.")] = None,
    until: Annotated[str, typer.Option(help="Last stage to run.")] = "promote",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be done, and what it costs.")] = False,
) -> None:
    """Run the chain; go on where an earlier run stopped."""
    settings = load(settings_files, overrides, prompts, seed)
    settings.check_chain()
    check_until(until, settings.place.kind)
    # So that a mistake in one shows before anything is started.
    read_prompts(*map(Path, filter(is_here, settings.prompts.paths)))
    if dry_run:
        from flows.plan import plan
        from flows.plan_table import show_plan
        from flows.sweep_plan import Shared

        show_plan([Shared(step, points=[1]) for step in plan(settings, until)], [settings])
        return
    groups: dict[str, Any] = {name: getattr(settings, name) for name in Settings.model_fields}
    store = workshop_of(settings).store
    earlier = last_run(store)
    with prefect_server(settings):
        from flows.dpo import dpo_pipeline

        try:
            dpo_pipeline(**groups, until=until)
        finally:
            if last_run(store) != earlier:
                _show_last_run(settings, store)


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder with train.jsonl and val.jsonl.")],
    adapter: Annotated[Path, typer.Option(help="Folder of the adapter to start from.")],
    base: Annotated[str | None, typer.Option(help="Base model: short for --set place.base_model=BASE.")] = None,
    output: Annotated[Path | None, typer.Option("--out", help="New folder for a copy of the trained adapter.")] = None,
    settings_files: Annotated[
        list[Path], typer.Option("--settings", help="YAML file of settings; default: the recommended preset.")
    ] = ALONE,
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(help="Sets the seed of every group.")] = None,
) -> None:
    """Train alone: on any pairs, from any adapter. Go on where an earlier training stopped."""
    given = [*(overrides or []), *([f"place.base_model={json.dumps(base)}"] if base else [])]
    settings = load(settings_files, given, seed=seed)
    if output and output.exists():
        raise FatalError(f"--out {output}: exists already and may be served; name a new folder")
    if output:
        check_output(output, name="--out")
    with prefect_server(settings):
        from flows.training import training_pipeline

        result = training_pipeline(data.absolute(), adapter.absolute(), settings.training, settings.place)
    if output:
        publish(Path(result["folder"]), output.resolve())
    stage = {"status": "cached" if result["reused"] else "ran", "rows": result["metrics"]["train_pairs"]}
    out.print(closing_table({"stages": {"train": stage}, "training": result["metrics"]}), soft_wrap=False)
    say(f"trained adapter: {output or result['folder']}")


@app.command()
def report(
    settings_files: SettingsFiles = DEFAULT,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Show the last run, and where its report page is."""
    settings = load(settings_files, overrides)
    store = workshop_of(settings).store
    if as_json:
        print(json.dumps(_last_summary(store), indent=1))
    else:
        _show_last_run(settings, store)


@app.command()
def serve(
    settings_files: SettingsFiles = DEFAULT,
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
) -> None:
    """Serve the promoted adapter on this machine until Ctrl-C."""
    settings = load(settings_files, overrides)
    from flows.serving import serve_current

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with serve_current(settings, port) as url:
        say(f"serving {settings.sampling.model} at {url}; Ctrl-C ends it")
        stop.wait()


@app.command()
def doctor(
    settings_files: SettingsFiles = DEFAULT,
    overrides: Overrides = None,
    place: Annotated[
        str | None, typer.Option(help="Short for --settings deployments/PLACE.yaml, before others.")
    ] = None,
) -> None:
    """Check what is installed, reachable and missing, and what each lack prevents."""
    settings = load(_with_place(place, settings_files) if place else settings_files, overrides)
    from flows.doctor import examine

    findings = examine(settings)
    for finding in findings:
        out.print(
            f"{'ok     ' if finding.ok else 'MISSING'}  {finding.what}" + ("" if finding.ok else f": {finding.remedy}"),
            markup=False,
        )
    if not all(finding.ok for finding in findings):
        raise FatalError("something is missing; the lines above say what it prevents and what to do")


@app.command()
def prune(
    settings_files: SettingsFiles = DEFAULT,
    overrides: Overrides = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Delete what neither the last run nor a promoted adapter refers to: listed first.

    Journals and checkpoints of an interrupted run are listed too: without them the next run asks and trains again.
    """
    from flows.prune import delete, unreferenced

    settings = load(settings_files, overrides)
    workshop = workshop_of(settings)
    found = unreferenced(workshop)
    for item in found:
        out.print(f"{item.bytes / 1e6:9.1f} MB  {item.name}", markup=False)
    if not found:
        say("nothing to prune")
    elif yes or typer.confirm(f"delete these {len(found)}, {sum(item.bytes for item in found) / 1e6:.1f} MB?"):
        delete(workshop.store, found)
        say(f"deleted {len(found)}")


@app.command()
def push(what: Given, settings_files: SettingsFiles = DEFAULT, overrides: Overrides = None) -> None:
    """Copy into the bucket (place.bucket), verified: a finished artifact of the data folder (place.data), or your own
    prompts or adapter. The key that it prints is then one of prompts.paths, or place.sft_adapter, on any machine."""
    settings = load(settings_files, overrides)
    from flows.transfers import push

    _say_copied(push(settings, what))


@app.command()
def pull(artifact: ArtifactKey, settings_files: SettingsFiles = DEFAULT, overrides: Overrides = None) -> None:
    """Copy a finished artifact from the bucket (place.bucket) into the data folder (place.data), verified."""
    settings = load(settings_files, overrides)
    from flows.transfers import pull

    _say_copied(pull(settings, artifact))


@app.command()
def image(name: ImageName, settings_files: SettingsFiles = DEFAULT, overrides: Overrides = None) -> None:
    """Print an image of place.gke.registry by its digest: the one with this checkout's content, built if it is missing.

    Cloud Build makes it of deployments/docker/NAME.Dockerfile and gets what goes in through the bucket (place.bucket).
    """
    settings = load(settings_files, overrides)
    from flows.images import image_reference

    print(image_reference(settings, name))


@jobs.command("list")
def list_jobs(settings_files: SettingsFiles = DEFAULT, overrides: Overrides = None) -> None:
    """List the training Jobs, oldest first."""
    from flows.jobs import table

    out.print(table(load(settings_files, overrides)), soft_wrap=False)


@jobs.command()
def logs(job: JobName, settings_files: SettingsFiles = DEFAULT, overrides: Overrides = None) -> None:
    """Print the logs of a Job's pods; that of a running one until it ends."""
    from flows.jobs import cluster

    cluster(load(settings_files, overrides)).logs(job)


@jobs.command()
def cancel(job: JobName, settings_files: SettingsFiles = DEFAULT, overrides: Overrides = None) -> None:
    """Delete a Job with its pods. Its checkpoints stay, and the next run goes on from there.

    A run that waits for the Job submits it again, so end that first.
    """
    from flows.jobs import cluster

    cluster(load(settings_files, overrides)).cancel(job)
    say(f"Job {job} and its pods are gone")


@exits_cleanly
def main() -> None:
    """The program's entry."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with servers:
            app()
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(*_: Any) -> NoReturn:
    """Answers SIGTERM as Ctrl-C is answered: what is at work ends, and a training saves a checkpoint first."""
    print("error: asked to stop; what is finished is kept; run again to go on", file=sys.stderr)
    sys.exit(TransientError.exit_code)


def _with_place(place: str, files: list[Path]) -> list[Path]:
    """A place's own settings, and those that were given after them."""
    kinds = get_args(PlaceSettings.model_fields["kind"].annotation)
    own = {kind: file for kind in kinds if (file := EMBEDDED.with_name(f"{kind}.yaml")).is_file()}
    if place not in own:
        raise FatalError(f"--place {place}: no settings for it ({', '.join(own)} have some); give them with --settings")
    return [own[place], *(files if files != DEFAULT else [])]


def _say_copied(artifact: Artifact) -> None:
    say(f"{artifact.key} {'was already' if artifact.reused else 'is now'} in {artifact.uri}")


def _last_summary(store: Store) -> dict[str, Any]:
    key = last_run(store)
    if key is None:
        raise FatalError(f"{store.uri}: no run yet; start one with `nothing-gpt run`")
    return json.loads(store.read(f"{key}/summary.json") or b"{}")


def _show_last_run(settings: Settings, store: Store) -> None:
    summary = _last_summary(store)
    page = store.fetch(f"runs/{summary['run']}/report.html")
    shutil.copyfile(page, Path(settings.place.data) / "report.html")
    # Not softly: a soft-wrapped table is cut at the right edge.
    out.print(closing_table(summary, Path(settings.place.data) / "report.html"), soft_wrap=False)
