"""Judging in batches: the same votes as live, what one batch's replies want in the next, and nothing paid for twice."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from nothing_gpt import batches
from nothing_gpt.config import Price
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError
from nothing_gpt.records import CompletionSet
from nothing_gpt.store import FolderStore, Store
from tests.conftest import Start
from tests.fake_batches import FakeBatches, serving_batches
from tests.fake_endpoint import Answer, Request, fails, says
from tests.judges import asked_again, judged, nobody, prefers, scene, usage, verdict_text
from tests.samples import completion_set


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBatches]:
    monkeypatch.setattr(batches, "POLL_S", 0.0)
    with serving_batches() as provider:
        provider.answer = prefers("one", "two")
        yield provider


def sets(count: int) -> list[CompletionSet]:
    return [completion_set(f"scene {number}") for number in range(count)]


def test_a_batch_gives_the_votes_that_single_calls_give(fake: FakeBatches, service: Service, store: Store) -> None:
    results = judged(store, service, sets(5), batch=True)
    assert len(fake.batches) == 1
    assert fake.requests == []
    assert judged(store, replace(service, connect=nobody), sets(5)) == results
    assert all(len(one.votes) == 2 for one in results)


def first_refused(request: Request) -> Answer:
    return says("hm") if not asked_again(request) else prefers("one", "two")(request)


def first_cut(request: Request) -> Answer:
    return says("", finish_reason="length") if request["max_tokens"] == 100 else prefers("one", "two")(request)


def no_schema(request: Request) -> Answer:
    if "response_format" in request:
        return fails(400, "json_schema is not supported")
    return prefers("one", "two")(request)


@pytest.mark.parametrize(("answer", "rows"), [(first_refused, 12), (first_cut, 12), (no_schema, 6)])
def test_what_the_replies_of_a_batch_want_goes_into_the_next(
    fake: FakeBatches, service: Service, store: Store, answer: Callable[[Request], Answer], rows: int
) -> None:
    fake.answer = answer
    results = judged(store, service, sets(3), batch=True, max_tokens=100)
    assert [(one.failed, len(one.votes)) for one in results] == [(None, 2)] * 3
    assert len(fake.batches) == 2
    assert fake.paid.total() == rows


def test_a_set_that_cannot_be_judged_fails_alone(fake: FakeBatches, service: Service, store: Store) -> None:
    wise = fake.answer
    broken: dict[str, Answer] = {
        "scene 0": says("hm"),
        "scene 1": says("", finish_reason="content_filter"),
        "scene 2": fails(400, "maximum context length is 2048"),
    }
    fake.answer = lambda request: broken.get(scene(request)) or wise(request)
    results = judged(store, service, sets(5), batch=True)
    assert [one.failed for one in results] == [
        "no usable verdict, asked twice: the reply holds no JSON object",
        "the provider's content filter withheld the verdict",
        "400 maximum context length is 2048",
        None,
        None,
    ]


def test_what_was_given_up_is_asked_for_anew_by_the_next_run(fake: FakeBatches, service: Service, store: Store) -> None:
    wise = fake.answer
    fake.answer = lambda request: says(verdict_text(1, 1))
    assert judged(store, service, sets(1), votes=1, batch=True)[0].failed
    fake.answer = wise
    assert judged(store, service, sets(1), votes=1, batch=True)[0].failed is None
    assert fake.paid.total() == 3


def test_a_stage_fails_past_its_share_of_sets_that_failed(fake: FakeBatches, service: Service, store: Store) -> None:
    fake.answer = lambda request: says("no")
    with pytest.raises(FatalError, match=r"judge: 2 of 4 rows failed \(judge.max_failed_share is 0.25\)"):
        judged(store, service, sets(4), batch=True, max_failed_share=0.25)


def test_a_panel_has_a_batch_a_model(fake: FakeBatches, service: Service, store: Store) -> None:
    (one,) = judged(store, service, sets(1), panel=["second"], batch=True)
    assert [vote.model for vote in one.votes] == ["fake", "fake", "second", "second"]
    assert len(fake.batches) == 2


def test_usage_counts_all_batches_and_what_was_kept_at_half_the_price(
    fake: FakeBatches, service: Service, store: Store
) -> None:
    fake.answer = first_refused
    judged(store, service, sets(2), batch=True)
    prices = {"fake": Price(input=1e6, output=0)}
    told = usage(store, service, sets(3), batch=True, prices=prices)
    assert (told["calls"], told["kept"], told["prompt_tokens"], told["cost_usd"]) == (4, 8, 120, 60.0)


def test_what_is_kept_costs_what_was_paid_however_it_is_asked_for_now(
    fake: FakeBatches, service: Service, store: Store
) -> None:
    prices = {"fake": Price(input=1e6, output=0)}  # 10 USD a call, 5 in a batch

    def cost(count: int, batch: bool) -> float:
        return usage(store, service, sets(count), batch=batch, prices=prices)["cost_usd"]

    assert [cost(3, batch=True), cost(3, batch=True), cost(3, batch=False)] == [30, 30, 30]
    assert [cost(4, batch=False), cost(4, batch=True), cost(5, batch=True)] == [50, 50, 60]


def test_what_was_paid_one_by_one_counts_towards_the_limit_of_a_batch(
    fake: FakeBatches, service: Service, store: Store
) -> None:
    prices = {"fake": Price(input=0, output=1e6)}  # 16 USD a call at most, 8 in a batch; 5 and 2.50 paid
    judged(store, service, sets(2), prices=prices, max_tokens=16)
    with pytest.raises(FatalError, match=r"max_cost_usd: 27\.0 would be exceeded after"):
        judged(store, service, sets(3), prices=prices, max_tokens=16, batch=True, max_cost_usd=27)
    assert fake.batches == {}


def test_one_reply_by_another_model_holds_up_nothing(fake: FakeBatches, service: Service, store: Store) -> None:
    wise = fake.answer
    fake.fate = lambda request, batch: (
        says("{}", model="fake-0613") if (scene(request), batch) == ("scene 2", 0) else wise(request)
    )
    results = judged(store, service, sets(5), votes=1, batch=True)
    assert [[vote.model for vote in one.votes] for one in results] == [["fake"]] * 5
    assert fake.paid.total() == 6


ASK = """
    import sys
    from nothing_gpt.endpoint import Service
    from nothing_gpt.store import open_store
    from tests.judges import judged
    from tests.samples import completion_set

    url, folder = sys.argv[1:]
    sets = [completion_set(f"scene {number}") for number in range(4)]
    judged(open_store(folder), Service(lambda: url, "fake", "adapter-1"), sets, batch=True)
"""


def test_a_run_that_was_killed_while_its_batch_went_on_pays_for_no_vote_twice(
    fake: FakeBatches, service: Service, store: Store, child: Start
) -> None:
    assert isinstance(store, FolderStore)
    waiting, dead = threading.Event(), threading.Event()

    def wait(step: str) -> None:
        if step == "GET /batches/ID":
            waiting.set()
            dead.wait(60)

    fake.before = wait
    process = child(ASK, fake.url, store.root)
    assert waiting.wait(60)
    process.kill()
    process.wait()
    dead.set()
    results = judged(store, service, sets(4), batch=True)
    assert [len(one.votes) for one in results] == [2] * 4
    assert len(fake.batches) == 1
    assert fake.paid.total() == 8
