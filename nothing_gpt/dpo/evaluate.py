"""Stage 5: how often the judge prefers the candidate to the adapter it started from, and to the one now served, on
prompts nobody trained on.

The adapters continue each held-out prompt once, and the judge compares two in both orders. The unit is the prompt: 1
where both orders prefer the candidate, 0 where both prefer the other, 1/2 for a tie or a split. Prompts are compared in
rounds, in an order that follows from their content, only as long as it is undecided whether the candidate wins more
than the gate wants: the interval holds at every look.

The judge is `judge.model` alone: there is no panel, no repeat and no batch here.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.behaviour import behaviour
from nothing_gpt.config import JudgeSettings, SamplingSettings
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError
from nothing_gpt.intervals import Estimate, win_rate
from nothing_gpt.judging import Judging, read_rubric
from nothing_gpt.preferences import JudgedSet
from nothing_gpt.records import CompletionSet, Prompt, digest, read_prompts, write_jsonl
from nothing_gpt.sampling import Sampling
from nothing_gpt.store import Store
from nothing_gpt.verdicts import Ranking, Verdict, consensus

STAGE = Stage("evaluate", 2)
UNFINGERPRINTED = {"model", "concurrency", "max_failed_share", "num_completions"}
"""Of the settings of sampling."""
FINGERPRINTED = {"temperature", "max_tokens", "seed"}
"""Of the judge's settings."""
METRICS = "metrics.json"
COMPARISONS = "comparisons.jsonl"
START, SERVED, CANDIDATE = "start", "served", "candidate"
ROUND = 32
"""Prompts a round: as many answers as the default window of an endpoint holds."""
ALONE = {"votes": 2, "panel": [], "repeat_share": 0.0, "batch": False}
"""How the judge is asked here, whatever its settings say of pairs."""


def evaluate(
    workshop: Workshop,
    prompts: Artifact,
    sampling: SamplingSettings,
    judge: JudgeSettings,
    start: Service,
    served: Service | None,
    candidate: Service,
    judging: Service,
    bound: float,
) -> Artifact:
    """`metrics.json` with the candidate's `win_rate` (`value`, `ci`, `n`) against the starting adapter and, where that
    is another, `win_rate_served` against the served one; how both looked (`behaviour.py`); and every comparison in
    `comparisons.jsonl`. It is decided when the interval is above `bound`, or nowhere above it.

    Raises:
        FatalError: no prompt could be compared, or as `Sampling.ask` and `Judging.ask`; TransientError as these.
    """
    references = {START: start} | ({SERVED: served} if served else {})

    def build(folder: Path) -> Mapping[str, Any]:
        held_out, _ = read_prompts(workshop.file(prompts, "test.jsonl"))
        held_out = sorted(held_out, key=lambda prompt: prompt.id)
        again = workshop.refreshed(STAGE, fingerprinted, inputs)
        with _Contests(workshop.store, sampling, judge.model_copy(update=ALONE), judging, again) as contests:
            contested = {
                name: contests.hold(held_out, name, service, candidate, bound) for name, service in references.items()
            }
        if not all(contested.values()):
            raise FatalError(
                f"evaluate: none of {len(held_out)} held-out prompts could be compared; "
                "see sampling.max_tokens and the judge"
            )
        write_jsonl(folder / COMPARISONS, (row for rows in contested.values() for row in rows))
        answers = {name: list(texts.values()) for name, texts in contests.answers.items()}
        metrics = {
            "held_out": len(held_out),
            "no_answer": {name: texts.count("") for name, texts in answers.items()},
            "behaviour": {name: behaviour(texts) for name, texts in answers.items()},
            "win_rate": _figures(contested[START]),
            "win_rate_served": _figures(contested[SERVED]) if served else None,
        }
        (folder / METRICS).write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        return {"rows": sum(map(len, contested.values())), "usage": contests.usage}

    fingerprinted = {
        "sampling": sampling.model_dump(exclude=UNFINGERPRINTED),
        "judge": judge.model_dump(include=FINGERPRINTED),
        "judged_by": judging.identity,
        "rubric": digest(read_rubric(judge.rubric)),
        "references": {name: service.identity for name, service in references.items()},
        "candidate": candidate.identity,
        "bound": bound,
    }
    inputs = {"prompts": prompts}
    return workshop.make(STAGE, fingerprinted, inputs, build)


def is_decided(estimate: Estimate, bound: float) -> bool:
    """Whether the interval is above the bound, or nowhere above it."""
    return estimate.low > bound or estimate.high <= bound


def score(votes: list[Verdict]) -> float:
    """The candidate's score on one prompt from the votes in both orders."""
    ranking = consensus(votes)
    if not isinstance(ranking, Ranking):
        return 0.5
    return float(ranking.best)  # of the reference, 0, and the candidate, 1


def foregone(reference: str, candidate: str) -> float | None:
    """The candidate's score where nobody need be asked: equal texts tie, and no answer at all loses."""
    if reference == candidate:
        return 0.5
    if not (reference and candidate):
        return 1.0 if candidate else 0.0
    return None


class _Contests:
    """The candidate's comparisons with one adapter after another, whose answers and judge they share. A context
    manager."""

    def __init__(self, store: Store, sampling: SamplingSettings, judge: JudgeSettings, judging: Service, again: str):
        self._store = store
        self._settings = sampling
        self._again = again
        self._judge = Judging(store, judge, judging, again)
        self._samplings: dict[str, Sampling] = {}
        self._stack = ExitStack()
        self.answers: dict[str, dict[str, str]] = {}
        """Each adapter's answers by prompt, empty where it gave none that can be used."""

    def __enter__(self) -> Self:
        self._stack.enter_context(self._judge)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def usage(self) -> dict[str, Any]:
        return {name: sampling.usage for name, sampling in self._samplings.items()} | {"judge": self._judge.usage}

    def hold(
        self, prompts: Sequence[Prompt], name: str, reference: Service, candidate: Service, bound: float
    ) -> list[dict[str, Any]]:
        """One row a prompt that could be compared, in rounds until it is decided or no prompt is left."""
        rows: list[dict[str, Any]] = []
        for first in range(0, len(prompts), ROUND):
            round_ = prompts[first : first + ROUND]
            theirs, ours = self._answer(round_, name, reference), self._answer(round_, CANDIDATE, candidate)
            sets = [
                CompletionSet(prompt, [theirs[prompt.id], ours[prompt.id]], [False] * 2)
                for prompt in round_
                if prompt.id in theirs and prompt.id in ours
            ]
            rows += self._compare(sets, name)
            if rows and is_decided(win_rate([row["score"] for row in rows]), bound):
                break
        return rows

    def _answer(self, prompts: Sequence[Prompt], name: str, service: Service) -> dict[str, str]:
        """One answer a prompt, by its id; asked for where there was none yet."""
        if name not in self._samplings:
            sampling = Sampling(self._store, self._settings, service, count=1, distinct=1, again=self._again)
            self._samplings[name] = self._stack.enter_context(sampling)
        answers = self.answers.setdefault(name, {})
        if missing := [prompt for prompt in prompts if prompt.id not in answers]:
            sampling = self._samplings[name]
            sampling.ask(missing, f"evaluate: {name}")
            for prompt in missing:
                result = sampling.result(prompt)
                if isinstance(result, CompletionSet):
                    answers[prompt.id] = result.completions[0]
                elif result.degenerate:
                    answers[prompt.id] = ""
        return answers

    def _compare(self, sets: Sequence[CompletionSet], name: str) -> list[dict[str, Any]]:
        """One row a set that could be judged."""
        rows: list[dict[str, Any]] = []
        self._judge.ask([item for item in sets if foregone(*item.completions) is None], f"evaluate: against {name}")
        for item in sets:
            points = foregone(*item.completions)
            judged = self._judge.result(item) if points is None else JudgedSet(item, [])
            if judged.failed is None:
                rows.append(
                    {
                        "against": name,
                        "prompt": item.prompt.messages,
                        "reference": item.completions[0],
                        "candidate": item.completions[1],
                        "score": score(judged.votes) if points is None else points,
                        "reasons": [vote.reason for vote in judged.votes],
                    }
                )
        return rows


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores = [row["score"] for row in rows]
    estimate = win_rate(scores)
    return {
        "value": estimate.value,
        "ci": [estimate.low, estimate.high],
        "n": estimate.n,
        "wins": scores.count(1),
        "losses": scores.count(0),
    }
