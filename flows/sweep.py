"""Several settings compared: each point of a sweep is a run of the chain up to the gate, and the best may be promoted.

What several points share is done once, by the first of them: the store answers the others. They follow one another,
with one vLLM where the place is the embedded one: on its limits (`flows.provision`) there is one training at a time
anyway.
"""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.states import Completed

from flows.dpo import dpo_pipeline
from flows.record import SWEEPS, StageName, watcher
from nothing_gpt.adapters import MARGINS
from nothing_gpt.artifacts import Workshop
from nothing_gpt.config import (
    GateSettings,
    JudgeSettings,
    PlaceSettings,
    PromptsSettings,
    SamplingSettings,
    ScaleSettings,
    Settings,
    SweepSettings,
    TrainingSettings,
)
from nothing_gpt.dpo.evaluate import COMPARISONS, START
from nothing_gpt.errors import FatalError, GateFailed
from nothing_gpt.halving import better_half
from nothing_gpt.loading import Preset, compose
from nothing_gpt.ranking import Outcome, ranked, rows
from nothing_gpt.records import digest, read_jsonl
from nothing_gpt.report.sweep import render_sweep_page, sweep_decision, sweep_plots
from nothing_gpt.store import Store
from nothing_gpt.sweeps import Point, SweepName, points_of, read_sweep
from tasks.place import open_place, sharing_engines
from tasks.results import kept
from tasks.secrets import secrets_from_blocks
from tasks.shown import show_sweep


@flow(name="dpo-sweep", validate_parameters=True)
def dpo_sweep(
    name: SweepName | None = None,
    sweep: SweepSettings = SweepSettings(),
    halving: bool = False,
    promote: bool = False,
    preset: Preset | None = None,
    prompts: PromptsSettings = PromptsSettings(),
    sampling: SamplingSettings = SamplingSettings(),
    judge: JudgeSettings = JudgeSettings(),
    training: TrainingSettings = TrainingSettings(),
    gate: GateSettings = GateSettings(),
    place: PlaceSettings = PlaceSettings(),
    scale: ScaleSettings = ScaleSettings(),
    overrides: list[str] = [],  # noqa: B006 (Prefect's form wants a list; nothing changes it)
) -> dict[str, Any]:
    """Runs the chain once for each point, compares them, and promotes the best one if it is asked to.

    A point that fails, or that the gate refuses, does not end the sweep. Returns the sweep's summary. The sweep fails
    where no point was measured, or where the best was to be promoted and was not.

    Args:
        name: A sweep of deployments/sweeps; it wins over the one below.
        sweep: The points to compare.
        halving: Train all points for a third of their epochs first; only the better half by validation accuracy goes
            on to the whole training and the evaluation.
        promote: Promote the best point that passes the gate.
        preset: As in dpo-pipeline: what all points have in common.
        prompts: As in dpo-pipeline.
        sampling: As in dpo-pipeline.
        judge: As in dpo-pipeline.
        training: As in dpo-pipeline.
        gate: As in dpo-pipeline.
        place: As in dpo-pipeline.
        scale: As in dpo-pipeline.
        overrides: As in dpo-pipeline. A point's own settings win over them.
    """
    started = time.time()
    groups = Settings.model_construct(
        prompts=prompts, sampling=sampling, judge=judge, training=training, gate=gate, place=place, scale=scale
    )
    chosen, common = read_sweep(name) if name else sweep, compose(groups, preset, overrides)
    points = points_of(chosen, common)
    if promote and any(point.settings.gate.approval == "required" for point in points):
        raise FatalError(
            "sweep: gate.approval is required, and only a run of its own can wait for a person; leave promote out, and "
            "run the best point's settings then"
        )
    with secrets_from_blocks(), open_place(common) as engines, sharing_engines():
        outcomes = ranked(_outcomes(points, engines.workshop, halving))
        best = outcomes[0]
        promoted, error = None, None
        if promote and best.passed:
            run, error = _run(best.name, {point.name: point.settings for point in points}[best.name], "promote")
            promoted = run and run["promoted"]
        begun = datetime.fromtimestamp(started, UTC)
        summary = {
            "sweep": begun.strftime("%Y%m%d-%H%M%S-%f")[:-3],
            "description": chosen.description,
            "place": common.place.kind,
            "store": engines.workshop.store.uri,
            "started": begun.isoformat(timespec="seconds"),
            "seconds": round(time.time() - started, 1),
            "points": rows(outcomes),
            "promoted": promoted,
            "error": error,
        }
        _publish(engines.workshop.store, summary)
    verdict = sweep_decision(summary)
    if not best.measured:
        raise FatalError(f"sweep: {verdict.headline.lower()}: {'; '.join(verdict.details)}")
    if promote and not promoted:
        raise GateFailed(f"sweep: nothing promoted: {error or verdict.headline}")
    done: Any = Completed(message=verdict.headline, data=kept(common.place, summary))
    return done


def _outcomes(points: Sequence[Point], workshop: Workshop, halving: bool) -> list[Outcome]:
    """What comes of each point, in their order."""
    first: dict[str, Outcome] = {}
    going_on = {point.name for point in points}
    if halving:
        for point in points:
            run, error = _run(f"{point.name} (a third)", point.on_the_first_budget(), "train")
            first[point.name] = Outcome(point.name, [run] if run else [], error, left_out=error is None)
        going_on = set(better_half({name: o.figures["accuracy"] for name, o in first.items() if o.left_out}))
    outcomes: list[Outcome] = []
    for point in points:
        before = first.get(point.name)
        if point.name not in going_on and before:
            outcomes.append(before)
            continue
        run, error = _run(point.name, point.settings, "gate")
        right, scores = _measured(workshop, run) if run else ({}, {})
        runs = [*(before.runs if before else []), *([run] if run else [])]
        outcomes.append(Outcome(point.name, runs, error, right=right, scores=scores))
    return outcomes


def _run(name: str, settings: Settings, until: StageName) -> tuple[dict[str, Any] | None, str | None]:
    """A run of the chain: its summary, None where it failed before it had one, and why it failed."""
    summaries: list[dict[str, Any]] = []
    token = watcher.set(summaries.append)
    named = dpo_pipeline.with_options(flow_run_name=name.replace("{", "{{").replace("}", "}}"))
    groups: dict[str, Any] = {group: getattr(settings, group) for group in Settings.model_fields}
    try:
        state = named(**groups, until=until, return_state=True)
    finally:
        watcher.reset(token)
    error = None if state.is_completed() else str(state.result(raise_on_failure=False))
    return (summaries[-1] if summaries else None), error


def _measured(workshop: Workshop, run: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """By what a run's point is compared: which validation pairs it told apart, and its scores on held-out prompts."""

    def read(stage: str, file: str) -> list[dict[str, Any]]:
        key = run["stages"].get(stage, {}).get("artifact")
        return [row for _, row in read_jsonl(workshop.store.fetch(f"{key}/{file}"))] if key else []

    right = {row["pair"]: float(row["margin"] > 0) for row in read("train", MARGINS)}
    compared = read("evaluate", COMPARISONS)
    return right, {digest(row["prompt"]): row["score"] for row in compared if row["against"] == START}


def _publish(store: Store, summary: dict[str, Any]) -> None:
    plots = sweep_plots(summary)
    key = f"{SWEEPS}/{summary['sweep']}"
    store.write(f"{key}/report.html", render_sweep_page(summary, plots).encode())
    # Last: the sweep is there when its summary is.
    store.write(f"{key}/summary.json", json.dumps(summary, indent=1).encode())
    show_sweep(summary, plots)
