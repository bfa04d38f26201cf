"""The record of one run: what each stage did, the figures at the end, and the report page made of them.

Kept in the store under `runs/`, written when the run ends, whichever way it ends.
"""

import json
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from nothing_gpt.artifacts import Artifact, Workshop
from nothing_gpt.config import Settings
from nothing_gpt.dpo.gate import Decision
from nothing_gpt.dpo.pairs import EXAMPLES, PEOPLE, people
from nothing_gpt.errors import FatalError
from nothing_gpt.quality import beyond_limits
from nothing_gpt.records import read_jsonl
from nothing_gpt.report.page import render_page, run_plots
from nothing_gpt.report.plots import Plot
from nothing_gpt.results import evaluation_metrics, quality_figures, training_metrics
from nothing_gpt.serve.registry import Version
from nothing_gpt.store import Store

FOLDER = "runs"
WAITING = "waiting"
SWEEPS = "sweeps"
StageName = Literal[
    "scripts",
    "prompts",
    "base",
    "sft",
    "image",
    "generate_pairs",
    "judge",
    "pairs",
    "train",
    "evaluate",
    "gate",
    "promote",
]
STAGES: tuple[StageName, ...] = get_args(StageName)
ONLY_IN = {"scripts": "embedded", "base": "embedded", "image": "gke"}
"""Stages that one kind of place has and no other."""
watcher: ContextVar[Callable[[dict[str, Any]], None] | None] = ContextVar("watcher", default=None)
"""Is told the summary of each run that ends in this context, however it ends."""


def check_until(until: str, kind: str) -> None:
    """Raises FatalError where a run in a place of this kind has no such stage to end with."""
    if until not in STAGES:
        raise FatalError(f"--until {until}: no such stage; the stages are {', '.join(STAGES)}")
    if ONLY_IN.get(until, kind) != kind:
        raise FatalError(f"--until {until}: only the place {ONLY_IN[until]} has this stage")


class RunRecord:
    """Collects what the stages of one run did. One that waited for a person, and began again, goes on with its record:
    `flow_run` is the same then."""

    def __init__(self, workshop: Workshop, settings: Settings, flow_run: str):
        self._workshop = workshop
        self._settings = settings
        self._waiting = f"{FOLDER}/{WAITING}/{flow_run}.json"
        self._before: dict[str, Any] = json.loads(workshop.store.read(self._waiting) or b"{}")
        self._started = time.time()
        self._results: dict[str, Any] = {}
        self._stages: dict[str, dict[str, Any]] = {}
        self._error: str | None = None
        self.plots: list[Plot] = []
        """The report's, once the run has finished."""

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Does a stage's work, and notes how it went."""
        started = time.monotonic()
        try:
            result = self._results[name] = work()
        except Exception as error:
            self._error = str(error)
            self._note(name, "failed", started, None)
            raise
        reused = isinstance(result, Artifact) and result.reused
        self._note(name, "cached" if reused else "ran", started, result if isinstance(result, Artifact) else None)
        return result

    def finish(self, waits_until: float | None = None) -> dict[str, Any]:
        """Writes the report page and then the summary, which it returns. The run has ended, or waits for a person (Unix
        time, s)."""
        summary = self._summary()
        if waits_until:
            summary["waits_until"] = _moment(waits_until)
            self._workshop.store.write(self._waiting, json.dumps(summary).encode())
        else:
            self._workshop.store.delete(self._waiting)
        key = f"{FOLDER}/{summary['run']}"
        steps, pairs, comparisons = (
            self.rows(stage, name)
            for stage, name in (("train", "steps.jsonl"), ("pairs", EXAMPLES), ("evaluate", "comparisons.jsonl"))
        )
        self.plots = run_plots(summary, steps)
        page = render_page(summary, steps, pairs, comparisons, self.plots)
        self._workshop.store.write(f"{key}/report.html", page.encode())
        # Last: the run is there when its summary is (`last_run`).
        self._workshop.store.write(f"{key}/summary.json", json.dumps(summary, indent=1).encode())
        if watch := watcher.get():
            watch(summary)
        return summary

    def _note(self, name: str, status: str, started: float, artifact: Artifact | None) -> None:
        before = self._before.get("stages", {}).get(name)
        if status == "cached" and artifact and before and before["artifact"] == artifact.key:
            self._stages[name] = before
            return
        self._stages[name] = {
            "status": status,
            "seconds": round(time.monotonic() - started, 2),
            "rows": self._workshop.counts(artifact).get("rows") if artifact else None,
            "artifact": artifact.key if artifact else None,
        }

    def _summary(self) -> dict[str, Any]:
        workshop, results = self._workshop, self._results
        training = training_metrics(workshop, results["train"]) if "train" in results else None
        data = quality_figures(workshop, results["pairs"]) if "pairs" in results else None
        evaluation = evaluation_metrics(workshop, results["evaluate"]) if "evaluate" in results else {}
        decision: Decision | None = results.get("gate")
        version: Version | None = results.get("promote")
        cost = self._cost()
        run = datetime.fromtimestamp(self._started, UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
        return {
            "run": self._before.get("run", run),
            "started": self._before.get("started", _moment(self._started)),
            "seconds": round(self._before.get("seconds", 0) + time.time() - self._started, 1),
            "place": self._settings.place.kind,
            "seed": self._settings.training.seed,
            "stages": self._stages,
            "store": workshop.store.uri,
            "data": data,
            "warnings": beyond_limits(data, self._settings.judge) if data else [],
            "people": self._people() if data else None,
            "training": training,
            "win_rate": evaluation.get("win_rate"),
            "win_rate_served": evaluation.get("win_rate_served"),
            "behaviour": evaluation.get("behaviour"),
            "gate": {
                "passed": decision.passed,
                "reasons": [{"passed": reason.passed, "text": reason.text} for reason in decision.reasons],
            }
            if decision
            else None,
            "approval": results["approval"].model_dump() if results.get("approval") else None,
            "promoted": {"name": version.name, "version": version.version, "fingerprint": version.fingerprint}
            if version
            else None,
            "cost_usd": cost["total"],
            "cost": cost,
            "error": self._error
            or (
                f"gate: not promoted, because {'; '.join(decision.failures)}"
                if decision and not decision.passed
                else None
            ),
        }

    def _people(self) -> dict[str, Any] | None:
        """The judge's agreement with hand labels, where there are any."""
        judged = self._results.get("judge")
        labelled = people(self._workshop, judged, self._settings.judge) if judged else None
        return json.loads(self._workshop.file(labelled, PEOPLE).read_bytes()) if labelled else None

    def _cost(self) -> dict[str, float | None]:
        """What this run spent (USD); None for what has no known price."""
        judging: list[float | None] = []
        for name in ("judge", "evaluate"):
            if self._stages.get(name, {}).get("status") == "ran":
                usage = self._workshop.counts(self._results[name]).get("usage", {})
                usage = usage.get("judge", usage)
                judging.append(usage.get("cost_usd") if usage else 0.0)
        trained = self._stages.get("train", {})
        gpu = (
            self._settings.place.gpu_usd_per_hour * trained["seconds"] / 3600 if trained.get("status") == "ran" else 0.0
        )
        judge = None if None in judging else sum(cost for cost in judging if cost)
        return {"judge": judge, "gpu": gpu, "total": None if judge is None else judge + gpu}

    def rows(self, stage: str, name: str) -> list[dict[str, Any]]:
        """Those of one of a stage's files; none where it did not come to that."""
        if stage not in self._results:
            return []
        return [row for _, row in read_jsonl(self._workshop.file(self._results[stage], name))]


def _moment(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")


def last_run(store: Store) -> str | None:
    """Key of the latest run's folder, or None where there was none."""
    keys = [key for key in store.list(FOLDER) if key.endswith("/summary.json")]
    return keys[-1].rpartition("/")[0] if keys else None


def waiting_runs(store: Store) -> list[dict[str, Any]]:
    """Summaries of the runs that wait for a person and may still go on."""
    summaries = [json.loads(store.read(key) or b"{}") for key in store.list(f"{FOLDER}/{WAITING}")]
    return [summary for summary in summaries if summary.get("waits_until", "") > _moment(time.time())]


def last_sweep(store: Store) -> dict[str, Any] | None:
    """Summary of the latest sweep, or None where there was none."""
    keys = [key for key in store.list(SWEEPS) if key.endswith("/summary.json")]
    return json.loads(store.read(keys[-1]) or b"{}") if keys else None
