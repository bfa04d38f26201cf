"""Stage 5: both adapters continue each held-out prompt, both orders are judged, and the unit is the prompt."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import JudgeSettings, SamplingSettings
from nothing_gpt.dpo.evaluate import COMPARISONS, METRICS, evaluate, score
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
        self.reference = Service(lambda: fake.url, "old", "digest-old")
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
        best = 1 if winner in ("place", "tie") else shown.index(f"[JERRY] by {winner}") + 1
        verdict = {"reason": "r", "best": best, "worst": 3 - best, "tie": winner == "tie"}
        return says(json.dumps(verdict), model=model)

    def evaluate(self, workshop: Workshop, judge: JudgeSettings = JUDGE) -> Artifact:
        def build(folder: Path) -> dict[str, int]:
            write_jsonl(folder / "test.jsonl", ({"prompt": prompt.messages} for prompt in prompts(len(self.wins))))
            return {}

        held_out = workshop.make(Stage("prompts", 1), {"wins": self.wins}, {}, build)
        return evaluate(workshop, held_out, SAMPLING, judge, self.reference, self.candidate, self.judge)


def metrics(workshop: Workshop, made: Artifact) -> dict[str, Any]:
    return json.loads(workshop.file(made, METRICS).read_text())


def test_wins_count_one_ties_and_splits_a_half_and_losses_nothing(workshop: Workshop, fake: FakeEndpoint) -> None:
    made = Contest(fake, ["new", "new", "new", "old", "tie", "place"]).evaluate(workshop)
    scores = [row["score"] for _, row in read_jsonl(workshop.file(made, COMPARISONS))]
    assert scores == [1, 1, 1, 0, 0.5, 0.5]
    expected = win_rate(scores)
    assert metrics(workshop, made) == {
        "held_out": 6,
        "no_answer": {"reference": 0, "candidate": 0},
        "win_rate": {"value": expected.value, "ci": [expected.low, expected.high], "n": 6},
        "wins": 3,
        "losses": 1,
    }


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
    assert [row["score"] for _, row in read_jsonl(workshop.file(made, COMPARISONS))] == [0, 1, 1]
    assert metrics(workshop, made)["no_answer"] == {"reference": 1, "candidate": 1}
    assert metrics(workshop, made)["win_rate"]["n"] == 3
