"""Shards: whoever works on them, the stage's result is that of one worker, and the whole's limits are kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt import shards as module
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import Price, SamplingSettings
from nothing_gpt.dpo.generate_pairs import COMPLETIONS, SET_ASIDE, generate_pairs, generate_shard
from nothing_gpt.endpoint import AHEAD, Service
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.records import write_jsonl
from nothing_gpt.replies import Meter
from nothing_gpt.shards import LEAST_ROWS, MOST_SHARDS, Shard, shards
from nothing_gpt.store import open_store
from tests.fake_endpoint import Answer, FakeEndpoint, Request, fails, last, says
from tests.samples import prompts
from tests.workers import Workers, nowhere, timeless

pytestmark = pytest.mark.usefixtures("hasty", "small_shards")
ROWS, SIZE = 40, 8
SETTINGS = SamplingSettings(concurrency=12)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_ROWS", SIZE)


@pytest.fixture
def given(workshop: Workshop, tmp_path: Path) -> Artifact:
    return given_in(workshop, tmp_path)


def given_in(workshop: Workshop, folder: Path) -> Artifact:
    write_jsonl(folder / "prompts.jsonl", ({"prompt": prompt.messages} for prompt in prompts(ROWS)))
    return workshop.adopt(Stage("prompts", 0), {"prompts.jsonl": folder / "prompts.jsonl"})


@pytest.fixture
def alone(tmp_path: Path) -> Workshop:
    """A workshop of its own, for the run of one worker."""
    return Workshop(open_store(str(tmp_path / "alone")), tmp_path / "alone-work")


def workers(given: Artifact, settings: SamplingSettings, service: Service) -> Workers:
    return Workers(generate_shard, given, settings, service)


def made(workshop: Workshop, artifact: Artifact) -> tuple[bytes, bytes]:
    return workshop.file(artifact, COMPLETIONS).read_bytes(), workshop.file(artifact, SET_ASIDE).read_bytes()


def some_fail(*numbers: int) -> Any:
    """Refuses those prompts, and answers the others by their content."""

    def answer(request: Request) -> Answer:
        if last(request) in {f"scene {number}" for number in numbers}:
            return fails(400, "too long")
        return says(*[f"{last(request)} {request['seed'] + i}" for i in range(request.get("n", 1))], seconds=0.005)

    return answer


@pytest.mark.parametrize("rows", [1, LEAST_ROWS, LEAST_ROWS + 1, 10_000, 65_536, 65_537, 1_000_000])
def test_shards_hold_every_row_once(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(module, "LEAST_ROWS", LEAST_ROWS)
    parts = shards(rows)
    assert [row for part in parts for row in range(part.start, part.stop)] == [*range(rows)]
    assert len(parts) <= MOST_SHARDS
    assert all(len(part) >= LEAST_ROWS for part in parts[:-1])


def test_a_stage_in_shards_makes_the_same_bytes_as_one_worker(
    workshop: Workshop, alone: Workshop, given: Artifact, tmp_path: Path, fake: FakeEndpoint, service: Service
) -> None:
    settings = SETTINGS.model_copy(update={"max_failed_share": 0.1})
    fake.answer = some_fail(3, 17, 18)
    four = workers(given, settings, service)
    in_shards = generate_pairs(workshop, given, settings, service, four)
    assert four.spread == shards(ROWS)
    whole = generate_pairs(alone, given_in(alone, tmp_path), settings, service)
    assert made(workshop, in_shards) == made(alone, whole)
    assert timeless(workshop.counts(in_shards)["usage"]) == timeless(alone.counts(whole)["usage"])


def test_no_row_is_asked_for_twice(workshop: Workshop, given: Artifact, fake: FakeEndpoint, service: Service) -> None:
    generate_pairs(workshop, given, SETTINGS, service, workers(given, SETTINGS, service))
    assert sorted(map(last, fake.requests)) == sorted(f"scene {number}" for number in range(ROWS))


def test_the_workers_keep_the_whole_window(
    workshop: Workshop, given: Artifact, fake: FakeEndpoint, service: Service
) -> None:
    fake.answer = some_fail()
    generate_pairs(workshop, given, SETTINGS, service, workers(given, SETTINGS, service))
    assert fake.most_in_flight <= int(AHEAD * SETTINGS.concurrency)


def test_a_stage_of_one_shard_is_not_spread(
    monkeypatch: pytest.MonkeyPatch, workshop: Workshop, given: Artifact, service: Service
) -> None:
    monkeypatch.setattr(module, "LEAST_ROWS", ROWS)
    assert workshop.counts(generate_pairs(workshop, given, SETTINGS, service, nowhere))["rows"] == ROWS


def test_only_shards_that_lack_something_are_worked_on(
    workshop: Workshop, given: Artifact, fake: FakeEndpoint, service: Service
) -> None:
    first, *others = shards(ROWS)
    generate_shard(workshop, given, SETTINGS, service, first)
    four = workers(given, SETTINGS, service)
    generate_pairs(workshop, given, SETTINGS, service, four)
    assert four.spread == others
    assert len(fake.requests) == ROWS


def test_what_a_lost_worker_left_is_asked_for_by_the_stage(
    workshop: Workshop, given: Artifact, fake: FakeEndpoint, service: Service
) -> None:
    four = workers(given, SETTINGS, service)
    made = generate_pairs(workshop, given, SETTINGS, service, lambda due: four(due[:2]))
    assert workshop.counts(made)["rows"] == len(fake.requests) == ROWS


def test_a_shard_that_fails_fails_the_stage_and_what_was_answered_is_kept(
    workshop: Workshop, given: Artifact, fake: FakeEndpoint, service: Service
) -> None:
    four = workers(given, SETTINGS, service)

    def breaks_down(due: Sequence[Shard]) -> Sequence[Mapping[str, Meter]]:
        four(due[:2])
        raise TransientError("the worker of shard 2 was lost")

    with pytest.raises(TransientError, match="shard 2"):
        generate_pairs(workshop, given, SETTINGS, service, breaks_down)
    generate_pairs(workshop, given, SETTINGS, service, four)
    assert len(fake.requests) == ROWS


def test_too_many_failed_rows_are_counted_over_all_shards(
    workshop: Workshop, given: Artifact, fake: FakeEndpoint, service: Service
) -> None:
    """Two are too many of a shard's eight rows and not of all forty; three are, in three shards."""
    settings = SETTINGS.model_copy(update={"max_failed_share": 0.05})
    fake.answer = some_fail(0, 1)
    generate_pairs(workshop, given, settings, service, workers(given, settings, service))
    settings = settings.model_copy(update={"seed": 1})
    fake.answer = some_fail(0, 8, 16)
    with pytest.raises(FatalError, match=f"generate: 3 of {ROWS} rows failed"):
        generate_pairs(workshop, given, settings, service, workers(given, settings, service))


def test_the_spending_limit_is_the_wholes(
    workshop: Workshop, given: Artifact, fake: FakeEndpoint, service: Service
) -> None:
    """Twenty replies' worth, of which each shard of eight rows may spend a fifth, and the stage what that leaves."""
    fake.answer = lambda request: says(*"abc", prompt_tokens=0, completion_tokens=3 * SETTINGS.max_tokens)
    reply = 3 * SETTINGS.max_tokens / 1e6
    priced = {"prices": {"fake": Price(input=0, output=1)}}
    settings = SETTINGS.model_copy(update={"max_cost_usd": 21.5 * reply, **priced})
    with pytest.raises(FatalError, match="max_cost_usd"):
        generate_pairs(workshop, given, settings, service, workers(given, settings, service))
    assert len(fake.requests) == 21
    enough = SETTINGS.model_copy(update={"max_cost_usd": 40.5 * reply, **priced})
    made = generate_pairs(workshop, given, enough, service, workers(given, enough, service))
    assert workshop.counts(made)["usage"]["kept"] == 21
    assert len(fake.requests) == ROWS


def test_workers_who_met_different_models_are_told_apart(
    workshop: Workshop, given: Artifact, fake: FakeEndpoint, service: Service
) -> None:
    """As while a provider replaces one by the next: a worker keeps to the first it met."""
    first = {f"scene {number}" for number in range(SIZE)}
    fake.answer = lambda request: says(
        *[f"{last(request)} {i}" for i in range(3)], model="fake-1" if last(request) in first else "fake-2"
    )
    for _ in range(2):
        with pytest.raises(FatalError, match="answered by fake-1 and by fake-2"):
            generate_pairs(workshop, given, SETTINGS, service, workers(given, SETTINGS, service))
