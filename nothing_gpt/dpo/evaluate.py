"""Stage 5: how often the judge prefers the candidate to the adapter it started from, on prompts nobody trained on.

Both adapters continue each held-out prompt once, and the judge compares the two in both orders. The unit is the
prompt: 1 where both orders prefer the candidate, 0 where both prefer the other, 1/2 for a tie or a split.

The judge is `judge.model` alone: there is no panel, no repeat and no batch here.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import JudgeSettings, SamplingSettings
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError
from nothing_gpt.intervals import win_rate
from nothing_gpt.judging import Judging, read_rubric
from nothing_gpt.preferences import JudgedSet
from nothing_gpt.records import CompletionSet, Prompt, digest, read_prompts, write_jsonl
from nothing_gpt.sampling import Sampling
from nothing_gpt.store import Store
from nothing_gpt.verdicts import Ranking, Verdict, consensus

STAGE = Stage("evaluate", 1)
METRICS = "metrics.json"
COMPARISONS = "comparisons.jsonl"
REFERENCE, CANDIDATE = 0, 1
ALONE = {"votes": 2, "panel": [], "repeat_share": 0.0, "batch": False}
"""How the judge is asked here, whatever its settings say of pairs."""


def evaluate(
    workshop: Workshop,
    prompts: Artifact,
    sampling: SamplingSettings,
    judge: JudgeSettings,
    reference: Service,
    candidate: Service,
    judging: Service,
) -> Artifact:
    """`metrics.json` with the `win_rate` (`value`, `ci`, `n`) of the candidate, and every comparison in
    `comparisons.jsonl`.

    Raises:
        FatalError: no prompt could be compared, or as `Sampling.ask` and `Judging.ask`; TransientError as these.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        held_out, _ = read_prompts(workshop.file(prompts, "test.jsonl"))
        usage: dict[str, Any] = {}
        again = workshop.refreshed(STAGE, fingerprinted, inputs)
        answers = {
            name: _answers(workshop.store, held_out, sampling, service, name, usage, again)
            for name, service in (("reference", reference), ("candidate", candidate))
        }
        sets = [
            CompletionSet(prompt, [answers["reference"][prompt.id], answers["candidate"][prompt.id]], [False] * 2)
            for prompt in held_out
            if prompt.id in answers["reference"] and prompt.id in answers["candidate"]
        ]
        rows = _compare(workshop.store, sets, judge.model_copy(update=ALONE), judging, usage, again)
        if not rows:
            raise FatalError(
                f"evaluate: none of {len(held_out)} held-out prompts could be compared; "
                "see sampling.max_tokens and the judge"
            )
        estimate = win_rate([row["score"] for row in rows])
        write_jsonl(folder / COMPARISONS, rows)
        metrics = {
            "held_out": len(held_out),
            "no_answer": {name: sum(not text for text in texts.values()) for name, texts in answers.items()},
            "win_rate": {"value": estimate.value, "ci": [estimate.low, estimate.high], "n": estimate.n},
            "wins": sum(row["score"] == 1 for row in rows),
            "losses": sum(row["score"] == 0 for row in rows),
        }
        (folder / METRICS).write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        return {"rows": len(rows), "usage": usage}

    fingerprinted = {
        "sampling": sampling.model_dump(exclude={"model", "concurrency", "max_failed_share", "num_completions"}),
        "judge": judge.model_dump(include={"temperature", "max_tokens", "seed"}),
        "judged_by": judging.identity,
        "rubric": digest(read_rubric(judge.rubric)),
        "reference": reference.identity,
        "candidate": candidate.identity,
    }
    inputs = {"prompts": prompts}
    return workshop.make(STAGE, fingerprinted, inputs, build)


def score(votes: list[Verdict]) -> float:
    """The candidate's score on one prompt from the votes in both orders."""
    ranking = consensus(votes)
    if not isinstance(ranking, Ranking):
        return 0.5
    return 1.0 if ranking.best == CANDIDATE else 0.0


def foregone(reference: str, candidate: str) -> float | None:
    """The candidate's score where nobody need be asked: equal texts tie, and no answer at all loses."""
    if reference == candidate:
        return 0.5
    if not (reference and candidate):
        return 1.0 if candidate else 0.0
    return None


def _answers(
    store: Store,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    service: Service,
    name: str,
    usage: dict[str, Any],
    again: str,
) -> dict[str, str]:
    """One answer a prompt, by its id; empty where the adapter gave none that can be used."""
    with Sampling(store, settings, service, count=1, distinct=1, again=again) as sampling:
        sampling.ask(prompts, f"evaluate: {name}")
        usage[name] = sampling.usage
        results = [sampling.result(prompt) for prompt in prompts]
    return {
        item.prompt.id: item.completions[0] if isinstance(item, CompletionSet) else ""
        for item in results
        if isinstance(item, CompletionSet) or item.degenerate
    }


def _compare(
    store: Store,
    sets: list[CompletionSet],
    settings: JudgeSettings,
    service: Service,
    usage: dict[str, Any],
    again: str,
) -> list[dict[str, Any]]:
    """One row a prompt."""
    rows: list[dict[str, Any]] = []
    with Judging(store, settings, service, again) as judging:
        judging.ask([item for item in sets if foregone(*item.completions) is None], "evaluate: compare")
        usage["judge"] = judging.usage
        for item in sets:
            points = foregone(*item.completions)
            judged = judging.result(item) if points is None else JudgedSet(item, [])
            if judged.failed is not None:
                continue
            rows.append(
                {
                    "prompt": item.prompt.messages,
                    "reference": item.completions[REFERENCE],
                    "candidate": item.completions[CANDIDATE],
                    "score": score(judged.votes) if points is None else points,
                    "reasons": [vote.reason for vote in judged.votes],
                }
            )
    return rows
