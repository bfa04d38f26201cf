"""Sets judged in shards: the same votes as by one worker, and each asked for once."""

from functools import partial
from pathlib import Path

import pytest

from nothing_gpt import shards as module
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import JudgeSettings, Price
from nothing_gpt.dpo.judge import JUDGED, judge, judge_shard
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError
from nothing_gpt.judging import read_rubric
from nothing_gpt.records import write_jsonl
from nothing_gpt.shards import shards
from nothing_gpt.store import open_store
from tests.fake_endpoint import Answer, FakeEndpoint, Request, fails, says
from tests.judges import prefers, scene
from tests.samples import prompts
from tests.workers import Workers, nowhere, timeless

pytestmark = pytest.mark.usefixtures("hasty", "small_shards")
ROWS, SIZE = 24, 8
SETTINGS = JudgeSettings(panel=["second"], max_failed_share=0.2)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_ROWS", SIZE)


@pytest.fixture(autouse=True)
def judging(fake: FakeEndpoint) -> None:
    """A judge that finds no verdict on one set, and refuses another."""

    def answer(request: Request) -> Answer:
        if scene(request) == "scene 9":
            return says("I would rather not.", model=request["model"])
        return fails(400, "too long") if scene(request) == "scene 17" else prefers("one", "three")(request)

    fake.answer = answer


@pytest.fixture
def sets(workshop: Workshop, tmp_path: Path) -> Artifact:
    return sets_in(workshop, tmp_path)


def sets_in(workshop: Workshop, folder: Path) -> Artifact:
    rows = ({"prompt": prompt.messages, "completions": ["one", "two", "three"]} for prompt in prompts(ROWS))
    write_jsonl(folder / "completions.jsonl", rows)
    return workshop.adopt(Stage("generate_pairs", 0), {"completions.jsonl": folder / "completions.jsonl"})


def workers(sets: Artifact, settings: JudgeSettings, service: Service, rubric: str = "") -> Workers:
    return Workers(partial(judge_shard, rubric=rubric or read_rubric(None)), sets, settings, service)


def test_a_stage_in_shards_makes_the_same_bytes_as_one_worker(
    workshop: Workshop, sets: Artifact, tmp_path: Path, service: Service
) -> None:
    alone = Workshop(open_store(str(tmp_path / "alone")), tmp_path / "alone-work")
    four = workers(sets, SETTINGS, service)
    in_shards = judge(workshop, sets, SETTINGS, service, four)
    whole = judge(alone, sets_in(alone, tmp_path), SETTINGS, service)
    assert four.spread == shards(ROWS)
    assert workshop.file(in_shards, JUDGED).read_bytes() == alone.file(whole, JUDGED).read_bytes()
    assert workshop.counts(in_shards)["failed"] == alone.counts(whole)["failed"] == 2
    assert timeless(workshop.counts(in_shards)["usage"]["models"]["second"]) == timeless(
        alone.counts(whole)["usage"]["models"]["second"]
    )


def test_what_a_shard_gave_up_is_not_asked_anew_by_the_stage(
    workshop: Workshop, sets: Artifact, fake: FakeEndpoint, service: Service
) -> None:
    judge(workshop, sets, SETTINGS, service, workers(sets, SETTINGS, service))
    # two orders and two models, each asked twice: the second time with the error shown
    assert sum(scene(request) == "scene 9" for request in fake.requests) == 8


def test_what_was_given_up_counts_against_the_share_that_may_fail(
    workshop: Workshop, sets: Artifact, service: Service
) -> None:
    strict = SETTINGS.model_copy(update={"max_failed_share": 0.01})
    with pytest.raises(FatalError, match=f"judge: 2 of {ROWS} rows failed"):
        judge(workshop, sets, strict, service, workers(sets, strict, service))


def test_workers_need_no_file_of_the_rubric(
    workshop: Workshop, sets: Artifact, tmp_path: Path, fake: FakeEndpoint, service: Service
) -> None:
    (tmp_path / "rubric.md").write_text("The shortest is best.")
    here = SETTINGS.model_copy(update={"rubric": str(tmp_path / "rubric.md")})
    there = SETTINGS.model_copy(update={"rubric": "/nowhere/rubric.md"})
    judge(workshop, sets, here, service, workers(sets, there, service, "The shortest is best."))
    assert {request["messages"][0]["content"] for request in fake.requests} == {"The shortest is best."}


def test_the_spending_limit_is_the_wholes(
    workshop: Workshop, sets: Artifact, fake: FakeEndpoint, service: Service
) -> None:
    fake.answer = prefers("one", "three", prompt_tokens=0, completion_tokens=SETTINGS.max_tokens)
    price = Price(input=0, output=1)
    limit = 30.5 * SETTINGS.max_tokens / 1e6
    settings = SETTINGS.model_copy(update={"prices": {"fake": price, "second": price}, "max_cost_usd": limit})
    with pytest.raises(FatalError, match="max_cost_usd"):
        judge(workshop, sets, settings, service, workers(sets, settings, service))
    assert len(fake.requests) == 30


def test_a_set_that_two_shards_hold_was_not_kept_from_before(
    workshop: Workshop, tmp_path: Path, fake: FakeEndpoint, service: Service
) -> None:
    fake.answer = prefers("one", "three")
    rows = [{"prompt": prompt.messages, "completions": ["one", "two", "three"]} for prompt in prompts(SIZE)]
    write_jsonl(tmp_path / "completions.jsonl", rows * 2)
    sets = workshop.adopt(Stage("generate_pairs", 0), {"completions.jsonl": tmp_path / "completions.jsonl"})
    settings = JudgeSettings()
    usage = workshop.counts(judge(workshop, sets, settings, service, workers(sets, settings, service)))["usage"]
    assert usage["calls"] == len(fake.requests)
    assert usage["kept"] == 0


def test_batches_are_not_spread(workshop: Workshop, sets: Artifact, service: Service) -> None:
    with pytest.raises(FatalError, match="batch"):  # which this endpoint knows nothing of
        judge(workshop, sets, SETTINGS.model_copy(update={"batch": True}), service, nowhere)
