"""Stage 5: both adapters continue each held-out prompt, both orders are judged, and the unit is the prompt."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import JudgeSettings, SamplingSettings
from nothing_gpt.dpo.evaluate import COMPARISONS, METRICS, ROUND, evaluate, score
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError
from nothing_gpt.intervals import win_rate
from nothing_gpt.records import read_jsonl, write_jsonl
from nothing_gpt.verdicts import Verdict
from tests.fake_endpoint import Answer, FakeEndpoint, Request, fails, last, says
from tests.samples import prompts, verdict

pytestmark = pytest.mark.usefixtures("hasty")
SAMPLING, JUDGE = SamplingSettings(max_failed_share=1.0), JudgeSettings(votes=1, max_failed_share=1.0)


class Contest:
    """Two adapters and their judge behind one address; `verdicts[scene]` is who wins it (or "place", "tie")."""

    def __init__(self, fake: FakeEndpoint, wins: list[str]):
        self.wins = wins
        fake.answer = self.answer
        self.start = Service(lambda: fake.url, "old", "digest-old")
        self.served: Service | None = None
        self.candidate = Service(lambda: fake.url, "new", "digest-new")
        self.judge = Service(lambda: fake.url, "judge", "judge")

    def answer(self, request: Request) -> Answer:
        model = request["model"]
        if model != "judge":
            winner = self.wins[int(last(request).removeprefix("scene "))]
            if winner == "refused":
                return fails(400, "no")
            if winner == f"mute {model}":
                return says("", model=model)
            return says("[JERRY] the same" if winner == "same" else f"[JERRY] by {model}", model=model)
        document = json.loads(request["messages"][1]["content"])
        winner = self.wins[int(document["conversation"][-1]["content"].removeprefix("scene "))]
        if winner == "unjudged":
            return says("hm", model=model)
        shown = [item["text"] for item in document["completions"]]
        if winner == "second":  # the candidate beats the starting adapter and loses to the served one
            winner = "served" if "[JERRY] by served" in shown else "new"
        best = 1 if winner in ("place", "tie") else shown.index(f"[JERRY] by {winner}") + 1
        verdict = {"reason": "r", "best": best, "worst": 3 - best, "tie": winner == "tie"}
        return says(json.dumps(verdict), model=model)

    def evaluate(self, workshop: Workshop, judge: JudgeSettings = JUDGE, bound: float = 0.5) -> Artifact:
        def build(folder: Path) -> dict[str, int]:
            write_jsonl(folder / "test.jsonl", ({"prompt": prompt.messages} for prompt in prompts(len(self.wins))))
            return {}

        held_out = workshop.make(Stage("prompts", 1), {"wins": self.wins}, {}, build)
        return evaluate(workshop, held_out, SAMPLING, judge, self.start, self.served, self.candidate, self.judge, bound)


def metrics(workshop: Workshop, made: Artifact) -> dict[str, Any]:
    return json.loads(workshop.file(made, METRICS).read_text())


def test_wins_count_one_ties_and_splits_a_half_and_losses_nothing(workshop: Workshop, fake: FakeEndpoint) -> None:
    made = Contest(fake, ["new", "new", "new", "old", "tie", "place"]).evaluate(workshop)
    scores = [row["score"] for _, row in read_jsonl(workshop.file(made, COMPARISONS))]
    assert sorted(scores) == [0, 0.5, 0.5, 1, 1, 1]
    expected = win_rate(scores)
    figures = metrics(workshop, made)
    assert figures["held_out"] == 6
    assert figures["no_answer"] == {"start": 0, "candidate": 0}
    assert figures["win_rate"] == {
        "value": expected.value, "ci": [expected.low, expected.high], "n": 6, "wins": 3, "losses": 1,
    }  # fmt: skip
    assert figures["win_rate_served"] is None
    assert figures["behaviour"]["candidate"] == {"answers": 6, "length": 14.0, "in_form": 1.0, "repetition": 0.0}


@pytest.mark.parametrize(("winner", "value"), [("new", 1.0), ("old", 0.0)])
def test_it_is_compared_only_until_that_is_decided(
    workshop: Workshop, fake: FakeEndpoint, winner: str, value: float
) -> None:
    figures = metrics(workshop, Contest(fake, [winner] * 200).evaluate(workshop))
    assert (figures["held_out"], figures["win_rate"]["n"], figures["win_rate"]["value"]) == (200, ROUND, value)


def test_while_it_is_undecided_every_held_out_prompt_is_compared(workshop: Workshop, fake: FakeEndpoint) -> None:
    made = Contest(fake, ["tie"] * 70).evaluate(workshop)
    assert metrics(workshop, made)["win_rate"]["n"] == 70
    assert workshop.counts(made)["usage"]["judge"]["calls"] == 140
    assert [workshop.counts(made)["usage"][name]["calls"] for name in ("start", "candidate")] == [70, 70]


def test_what_is_decided_depends_on_the_bound(workshop: Workshop, fake: FakeEndpoint) -> None:
    contest = Contest(fake, ["new"] * 96)
    assert metrics(workshop, contest.evaluate(workshop, bound=0.9))["win_rate"]["n"] > ROUND
    assert metrics(workshop, contest.evaluate(workshop, bound=0.5))["win_rate"]["n"] == ROUND


def test_the_candidate_meets_the_served_adapter_too(workshop: Workshop, fake: FakeEndpoint) -> None:
    contest = Contest(fake, ["second"] * 40)
    contest.served = Service(lambda: fake.url, "served", "digest-served")
    made = contest.evaluate(workshop)
    figures = metrics(workshop, made)
    assert (figures["win_rate"]["value"], figures["win_rate_served"]["value"]) == (1.0, 0.0)
    asked = [request["model"] for request in fake.requests]
    assert {name: asked.count(name) for name in ("old", "new", "served")} == {"old": 32, "new": 32, "served": 32}
    assert {row["against"] for _, row in read_jsonl(workshop.file(made, COMPARISONS))} == {"start", "served"}


def test_both_orders_are_judged_whatever_the_judges_setting(workshop: Workshop, fake: FakeEndpoint) -> None:
    Contest(fake, ["new"]).evaluate(workshop)
    asked = [json.loads(last(request))["completions"] for request in fake.requests if request["model"] == "judge"]
    assert {tuple(item["text"] for item in shown) for shown in asked} == {
        ("[JERRY] by old", "[JERRY] by new"),
        ("[JERRY] by new", "[JERRY] by old"),
    }


def test_the_judge_is_asked_alone_whatever_its_setting_for_pairs(workshop: Workshop, fake: FakeEndpoint) -> None:
    settings = JUDGE.model_copy(update={"panel": ["another"], "repeat_share": 0.1, "batch": True})
    Contest(fake, ["new"] * 30).evaluate(workshop, settings)
    asked = [request["model"] for request in fake.requests if request["model"] not in ("old", "new")]
    assert asked == ["judge"] * 60


def test_two_equal_texts_are_a_tie_that_nobody_is_asked_about(workshop: Workshop, fake: FakeEndpoint) -> None:
    made = Contest(fake, ["same", "same"]).evaluate(workshop)
    assert metrics(workshop, made)["win_rate"]["value"] == 0.5
    assert {request["model"] for request in fake.requests} == {"old", "new"}


def test_prompts_that_could_not_be_answered_or_judged_are_left_out(workshop: Workshop, fake: FakeEndpoint) -> None:
    made = Contest(fake, ["new", "refused", "unjudged", "old"]).evaluate(workshop)
    assert metrics(workshop, made)["win_rate"]["n"] == 2


def test_where_nothing_could_be_compared_the_stage_fails(workshop: Workshop, fake: FakeEndpoint) -> None:
    with pytest.raises(FatalError, match="none of 2 held-out prompts could be compared"):
        Contest(fake, ["refused", "unjudged"]).evaluate(workshop)


def test_each_adapter_is_asked_once_a_prompt_with_the_same_seed(workshop: Workshop, fake: FakeEndpoint) -> None:
    Contest(fake, ["new"] * 5).evaluate(workshop)
    seeds = {
        name: sorted(request["seed"] for request in fake.requests if request["model"] == name)
        for name in ("old", "new")
    }
    assert len(seeds["old"]) == 5
    assert seeds["old"] == seeds["new"]


def test_another_candidate_is_another_evaluation_and_keeps_the_references_answers(
    workshop: Workshop, fake: FakeEndpoint
) -> None:
    contest = Contest(fake, ["new"] * 5)
    contest.evaluate(workshop)
    fake.requests.clear()
    contest.candidate = replace(contest.candidate, identity="digest-newer")
    assert not contest.evaluate(workshop).reused
    assert {request["model"] for request in fake.requests} == {"new"}


@pytest.mark.parametrize(
    ("votes", "points"),
    [
        ([verdict(1, 0), verdict(1, 0)], 1.0),
        ([verdict(0, 1), verdict(0, 1)], 0.0),
        ([verdict(1, 0), verdict(0, 1)], 0.5),
        ([verdict(1, 0), verdict(0, 0, tie=True)], 0.5),
    ],
)
def test_a_score_is_the_candidates(votes: list[Verdict], points: float) -> None:
    assert score(votes) == points


def test_an_adapter_that_gives_no_answer_loses_without_the_judge(workshop: Workshop, fake: FakeEndpoint) -> None:
    made = Contest(fake, ["mute new", "mute old", "new"]).evaluate(workshop)
    assert sorted(row["score"] for _, row in read_jsonl(workshop.file(made, COMPARISONS))) == [0, 1, 1]
    assert metrics(workshop, made)["no_answer"] == {"start": 1, "candidate": 1}
    assert metrics(workshop, made)["win_rate"]["n"] == 3
