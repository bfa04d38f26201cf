"""The DPO chain: from prompts and a starting adapter to a promoted adapter, or to the reasons why not.

`chain` says what follows what, once, for running it under Prefect and for planning it without running anything.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.approval import approval, check_askable
from flows.record import RunRecord, StageName, check_until
from flows.serving import agree
from nothing_gpt.bases import Base
from nothing_gpt.config import (
    GateSettings,
    JudgeSettings,
    PlaceSettings,
    PromptsSettings,
    SamplingSettings,
    ScaleSettings,
    Settings,
    TrainingSettings,
)
from nothing_gpt.dpo.evaluate import COMPARISONS
from nothing_gpt.dpo.gate import Decision
from nothing_gpt.loading import Preset, compose
from nothing_gpt.report.approval import question
from nothing_gpt.report.summary import decision
from nothing_gpt.serve.promote import is_current
from nothing_gpt.serve.registry import Approval, Version, read_registry
from tasks.approval import Evidence
from tasks.evaluate import evaluate
from tasks.gate import gate
from tasks.generate_pairs import generate_pairs
from tasks.image import image
from tasks.judge import judge
from tasks.pairs import pairs
from tasks.place import EmbeddedPlace, GKEPlace, LocalPlace, Models, open_place
from tasks.promote import promote
from tasks.prompts import prompts
from tasks.results import kept
from tasks.secrets import secrets_from_blocks
from tasks.shown import show_run
from tasks.start import adopt_adapter, base, scripts, sft
from tasks.train import train

Step = Callable[..., Any]
"""`step(task, place, *inputs)` does one stage and returns its result."""
Approve = Callable[[Evidence], Approval | None]
"""Asks a person where one is to be asked, and does not return where he rejects."""


def chain(place: EmbeddedPlace | LocalPlace, step: Step, approve: Approve = lambda _: None) -> None:
    """What follows what. A decision that does not pass must end it in `step`."""
    paths = place.settings.prompts.paths
    if isinstance(place, EmbeddedPlace):
        sample = step(scripts, place)
        asked = step(prompts, place, paths or [sample.key])
        tiny = step(base, place, sample)
        tiny_base = Base(str(place.workshop.folder(tiny)), tiny.digest)
        models = Models(tiny_base, place.start(step(sft, place, sample, tiny)))
    else:
        models = Models(place.base(), place.start(step(adopt_adapter, place)))
        asked = step(prompts, place, paths)
        if isinstance(place, GKEPlace):
            step(image, place)
    completions = step(generate_pairs, place, models, asked)
    judged = step(judge, place, completions)
    preferences = step(pairs, place, completions, judged)
    candidate = step(train, place, models, preferences)
    registry = read_registry(place.workshop.store)  # once: what is compared with is what may be replaced
    evaluation = step(evaluate, place, models, asked, candidate, registry)
    decision = step(gate, place, preferences, candidate, evaluation)
    evidence = Evidence(candidate, evaluation, decision, registry)
    step(promote, place, models, evidence, approve(evidence))


@flow(name="dpo-pipeline", validate_parameters=True)
def dpo_pipeline(
    preset: Preset | None = None,
    prompts: PromptsSettings = PromptsSettings(),
    sampling: SamplingSettings = SamplingSettings(),
    judge: JudgeSettings = JudgeSettings(),
    training: TrainingSettings = TrainingSettings(),
    gate: GateSettings = GateSettings(),
    place: PlaceSettings = PlaceSettings(),
    scale: ScaleSettings = ScaleSettings(),
    overrides: list[str] = [],  # noqa: B006 (Prefect's form wants a list; nothing changes it)
    until: StageName = "promote",
    refresh: list[StageName] = [],  # noqa: B006
) -> dict[str, Any]:
    """Samples, judges, trains, evaluates, and promotes the new adapter if it is measurably better.

    A group of settings is taken whole: given from a shell, what it does not name falls back to its default, not to the
    deployment's value. To change single settings, use `overrides`.

    Returns the run's summary. A failed gate, or a person who rejects, ends the run in Failed, with the reasons.

    Args:
        preset: Settings of deployments/presets, laid over the groups below: what a preset names is its value.
        prompts: Which prompts are used. Given from a shell or a schedule, a group replaces the deployment's as a whole.
        sampling: Stage 1, the completions. A group is replaced as a whole.
        judge: Stage 2, the verdicts. A group is replaced as a whole.
        training: Stage 3, DPO. A group is replaced as a whole; a preset wins over what stands here.
        gate: What the candidate must show, and whether a person must agree. A group is replaced as a whole.
        place: Where the engines are and where results are kept. A group is replaced as a whole.
        scale: On how many workers prompts are sampled and sets judged. A group is replaced as a whole.
        overrides: Single settings, each as group.key=value, such as training.beta=0.05; they win over all of the above.
        until: Last stage to run.
        refresh: Stages to do again although they are done, and with them whatever follows from another result. A stage
            that asks somebody asks for all its replies anew, and they are paid for again; the former ones are kept. A
            retry of the run goes on with the new ones. gate and promote always run.
    """
    check_until(until, place.kind)
    groups = Settings.model_construct(
        prompts=prompts, sampling=sampling, judge=judge, training=training, gate=gate, place=place, scale=scale
    )
    settings = compose(groups, preset, overrides)
    settings.check_chain()
    if until == "promote":
        check_askable(settings.gate)
    with secrets_from_blocks(), open_place(settings) as engines:
        engines.workshop.refresh = dict.fromkeys(refresh, flow_run.id or "")
        record = RunRecord(engines.workshop, settings, flow_run.id or "")

        def step(task: Any, *inputs: Any) -> Any:
            # Called, not submitted: in this thread Ctrl-C ends the work, in a worker's it would wait for its end.
            result = record.stage(task.name, lambda: task(*inputs, return_state=True).result())
            if isinstance(result, Decision):
                result.require()
            else:
                engines.name_copy(task.name, result.artifact if isinstance(result, Version) else result.key)
            if task.name == until:
                raise _Reached
            return result

        def publish(waits_until: float | None = None) -> dict[str, Any]:
            summary = record.finish(waits_until)
            show_run(summary, record.plots)
            return summary

        def approve(evidence: Evidence) -> Approval | None:
            workshop, group = engines.workshop, settings.gate
            if group.approval == "off" or is_current(workshop.store, workshop.folder(evidence.candidate)):
                return None

            def describe(until: float) -> str:
                return question(publish(until), evidence.registry.current, record.rows("evaluate", COMPARISONS))

            return record.stage("approval", lambda: approval(workshop.store, evidence, group, describe))

        try:
            agree(engines)
            chain(engines, step, approve)
        except _Reached:
            pass
        except Exception:
            with suppress(Exception):  # why the run failed matters more than that its report did
                publish()
            raise
        summary = publish()
        done: Any = Completed(message=decision(summary).headline, data=kept(settings.place, summary))
        return done


class _Reached(Exception):
    """The last stage that was asked for is done."""
