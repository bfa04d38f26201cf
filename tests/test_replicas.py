"""Several replicas of one service: the least loaded is asked, a failing one left out, a wrong one refused."""

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from nothing_gpt import endpoint as client
from nothing_gpt import replicas as module
from nothing_gpt.artifacts import Stage, Workshop
from nothing_gpt.batch_api import BatchApi
from nothing_gpt.config import PlaceSettings, SamplingSettings
from nothing_gpt.dpo.generate_pairs import COMPLETIONS, generate_pairs
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import BadRowError, FatalError, TransientError
from nothing_gpt.processes import free_port
from nothing_gpt.replicas import EJECT_AFTER, FIRST_OUT_S, LONGEST_OUT_S, Replica, Replicas, addresses
from nothing_gpt.replies import RateLimitError
from nothing_gpt.store import open_store
from nothing_gpt.window import Window
from tests.asking import Run, texts
from tests.fake_endpoint import Answer, FakeEndpoint, Request, fails, says, serving

pytestmark = pytest.mark.usefixtures("hasty")


@pytest.fixture
def other() -> Iterator[FakeEndpoint]:
    with serving() as endpoint:
        yield endpoint


def at(service: Service, *urls: str) -> Service:
    """The same service at these addresses."""
    return replace(service, connect=lambda: ",".join(urls))


def models(**roots: str) -> Answer:
    """A list of models as vLLM's, each with the path of its weights."""
    return Answer(
        body=json.dumps({"object": "list", "data": [{"id": n, "root": r} for n, r in roots.items()]}).encode()
    )


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Room:
    """Two replicas of no address, whose lists of models a test sets, and a clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.a, self.b = (_Replica(url, "fake", openai.AsyncOpenAI(api_key="none"), "none") for url in ("a", "b"))
        self.replicas = Replicas([self.a, self.b], self.clock)

    async def ask(self, error: Exception | None = None) -> str:
        """Sends a request that ends so; returns who was asked."""
        async with self.replicas.one() as replica:
            if error:
                raise error
            return replica.url

    async def fail(self, error: Exception) -> None:
        with pytest.raises(type(error)):
            await self.ask(error)

    async def fail_as(self, error: Exception, seen: type[Exception]) -> None:
        with pytest.raises(seen, match=str(error)):
            await self.ask(error)

    async def leave_a_out(self) -> None:
        for _ in range(EJECT_AFTER):
            await self.fail(TransientError("500"))


class _Replica(Replica):
    root = "weights"

    async def served(self) -> dict[str, str | None]:
        if self.root == "down":
            raise TransientError(f"{self.url}: down")
        return {"fake": self.root}


@pytest.mark.parametrize(
    ("text", "found"),
    [("http://a", ["http://a"]), (" http://a , http://b,,http://a", ["http://a", "http://b"]), ("", [""])],
)
def test_addresses_are_listed_with_commas_each_once(text: str, found: list[str]) -> None:
    assert addresses(text) == found


def test_a_setting_takes_addresses_as_a_list_too() -> None:
    assert PlaceSettings(serve_url=["http://a", "http://b"]).serve_url == "http://a,http://b"  # type: ignore[arg-type]


def test_the_one_with_the_fewest_in_flight_is_asked() -> None:
    async def run() -> list[str]:
        room = Room()
        async with room.replicas.one() as first, room.replicas.one() as second:
            return [first.url, second.url, await room.ask(), await room.ask()]

    assert asyncio.run(run()) == ["a", "b", "a", "a"]


def test_one_that_fails_in_succession_is_left_out_until_a_single_trial_succeeds() -> None:
    async def run() -> None:
        room = Room()
        await room.leave_a_out()
        assert room.replicas.left == 1
        assert {await room.ask() for _ in range(5)} == {"b"}
        room.clock.now += FIRST_OUT_S
        async with room.replicas.one() as trial:
            assert (trial.url, {await room.ask() for _ in range(5)}) == ("a", {"b"})
        assert (room.replicas.left, await room.ask()) == (2, "a")

    asyncio.run(run())


def test_each_trial_that_fails_doubles_the_time_out_up_to_a_limit() -> None:
    async def run() -> list[float]:
        room, waits = Room(), []
        await room.leave_a_out()
        for _ in range(6):
            waits.append(room.a.back_at - room.clock.now)
            room.clock.now = room.a.back_at
            await room.fail(TransientError("500"))
        return waits

    assert asyncio.run(run()) == [FIRST_OUT_S * factor for factor in (1, 2, 4, 8)] + [LONGEST_OUT_S] * 2


def test_one_that_stays_away_for_hours_is_tried_as_often_to_the_end() -> None:
    async def run() -> None:
        room = Room()
        await room.leave_a_out()
        room.a.trials = 100_000
        room.clock.now = room.a.back_at
        await room.fail(TransientError("500"))
        assert room.a.back_at == room.clock.now + LONGEST_OUT_S

    asyncio.run(run())


def test_one_that_was_down_at_the_start_is_tried_again_as_seldom() -> None:
    async def run() -> None:
        room = Room()
        room.a.root = "down"
        await room.replicas.check()
        room.clock.now = FIRST_OUT_S
        with pytest.raises(TransientError, match="a: down"):
            await room.ask()
        assert (room.a.back_at, await room.ask()) == (3 * FIRST_OUT_S, "b")
        room.a.root, room.clock.now = "weights", room.a.back_at
        assert (await room.ask(), room.replicas.left) == ("a", 2)

    asyncio.run(run())


def test_one_that_comes_back_with_another_adapter_stays_out(capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        room = Room()
        await room.replicas.check()
        await room.leave_a_out()
        room.a.root = "other weights"
        room.clock.now = room.a.back_at
        with pytest.raises(TransientError, match="is served from other weights, but at a it is served from weights"):
            await room.ask()
        assert (room.replicas.left, await room.ask()) == (1, "b")

    asyncio.run(run())


def test_one_that_failed_once_is_looked_at_before_it_is_asked_again() -> None:
    """A restart may be shorter than the failures that leave a replica out, and a late answer may come after them."""

    async def run() -> None:
        room = Room()
        await room.replicas.check()
        async with room.replicas.one() as late:
            room.b.in_flight = 2  # so that a is asked
            await room.fail(TransientError("connection reset"))
            assert late is room.a
        room.a.root = "other weights"
        with pytest.raises(TransientError, match="is served from other weights"):
            await room.ask()
        assert await room.ask() == "b"

    asyncio.run(run())


def test_where_all_are_left_out_the_error_says_why_until_one_is_due() -> None:
    async def run() -> None:
        room = Room()
        await room.leave_a_out()
        room.clock.now += FIRST_OUT_S / 2
        room.a.in_flight = 1  # so that b is asked
        for _ in range(EJECT_AFTER):
            await room.fail(TransientError("b is out too"))
        room.a.in_flight = 0
        with pytest.raises(TransientError, match="500"):
            await room.ask()
        room.clock.now = room.b.back_at
        assert await room.ask() == "a"

    asyncio.run(run())


def test_a_row_that_cannot_be_answered_is_no_fault_of_a_replica() -> None:
    async def run() -> None:
        room = Room()
        for _ in range(3 * EJECT_AFTER):
            await room.fail(BadRowError("too long", 400))
        assert (room.a.failures, room.replicas.left) == (0, 2)

    asyncio.run(run())


def test_a_replica_that_refuses_all_requests_is_left_out_and_the_last_one_stops_the_work() -> None:
    async def run() -> None:
        room = Room()
        with pytest.raises(TransientError, match="no such model"):
            await room.ask(FatalError("no such model"))
        assert room.replicas.left == 1
        with pytest.raises(FatalError, match="no such model"):
            await room.ask(FatalError("no such model"))

    asyncio.run(run())


def test_a_refusal_at_one_does_not_stop_the_work_while_another_only_restarts() -> None:
    async def run() -> None:
        room = Room()
        await room.fail_as(FatalError("the key is refused"), TransientError)
        for _ in range(EJECT_AFTER):
            await room.fail(TransientError("restarting"))
        room.clock.now = room.a.back_at
        await room.fail_as(FatalError("the key is refused"), TransientError)
        room.clock.now = room.b.back_at
        room.a.in_flight = 1  # so that b is asked
        assert await room.ask() == "b"

    asyncio.run(run())


def test_one_that_names_the_time_to_come_back_is_left_out_until_then_and_the_others_go_on() -> None:
    async def run() -> None:
        room = Room()
        with pytest.raises(TransientError) as raised:
            await room.ask(RateLimitError("too many", retry_after=3600))
        assert not isinstance(raised.value, RateLimitError), "or all would wait"
        assert (room.a.back_at, {await room.ask() for _ in range(5)}) == (3600, {"b"})
        await room.fail(RateLimitError("too many", retry_after=60))  # the last one: all wait
        assert room.replicas.left == 1

    asyncio.run(run())


def test_a_replica_that_comes_and_goes_does_not_widen_a_window_that_was_narrowed() -> None:
    window = Window(40)
    window.shrink()
    for most in (20, 40, 20, 40):
        window.resize(most)
    assert window.limit == 20


def test_each_replica_has_its_own_share_in_flight(fake: FakeEndpoint, other: FakeEndpoint, service: Service) -> None:
    share, full = int(client.AHEAD * 4), threading.Event()

    def answer(request: Request) -> Answer:
        if (fake.most_in_flight == other.most_in_flight == share) or not full.wait(60):
            full.set()
        return says("x")

    fake.answer = other.answer = answer
    run = Run(at(service, fake.url, other.url), texts(40), concurrency=4)
    assert (len(run.replies), run.error) == (40, None)
    assert (fake.most_in_flight, other.most_in_flight) == (share, share)


def test_a_slow_replica_holds_up_no_more_than_its_share(
    fake: FakeEndpoint, other: FakeEndpoint, service: Service
) -> None:
    share, enough = int(client.AHEAD * 4), threading.Event()

    def quick(request: Request) -> Answer:
        if len(other.requests) == 40 - share:
            enough.set()
        return says("x")

    fake.answer = lambda request: says("x" if enough.wait(20) else "held up")
    other.answer = quick
    run = Run(at(service, fake.url, other.url), texts(40), concurrency=4)
    assert {reply.choices[0].text for reply in run.replies.values()} == {"x"}
    assert (len(fake.requests), len(other.requests)) == (share, 40 - share)


@pytest.mark.parametrize("refuses", [False, True], ids=["answers 500", "refuses connections"])
def test_a_failing_replica_costs_no_row(
    fake: FakeEndpoint, other: FakeEndpoint, service: Service, refuses: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = lambda request: fails(500, "no")
    url = f"http://127.0.0.1:{free_port()}/v1" if refuses else fake.url
    run = Run(at(service, url, other.url), texts(100), concurrency=4)
    assert (len(run.replies), run.aside, run.error) == (100, {}, None)
    assert len(fake.requests) < 20
    assert capsys.readouterr().err.count(f"{url}: left out until it answers") == 1


def test_a_replica_that_comes_back_takes_its_share_again(
    fake: FakeEndpoint, other: FakeEndpoint, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_OUT_S", 0.0)
    fake.script = [fails(503, "restarting")] * 12
    back = threading.Event()

    def answer(request: Request) -> Answer:
        back.wait(0 if len(other.requests) < 20 else 60)  # the other's last requests, until this one works again
        return says("x")

    def recovered(request: Request) -> Answer:
        if len(fake.requests) > 12 + 5:
            back.set()
        return says("x")

    fake.answer, other.answer = recovered, answer
    run = Run(at(service, fake.url, other.url), texts(100), concurrency=4)
    assert (len(run.replies), run.aside, run.error) == (100, {}, None)
    assert back.is_set()


@pytest.mark.parametrize("roots", [{"fake": "/adapters/2"}, {}], ids=["another adapter", "no adapter"])
def test_a_replica_with_another_adapter_is_refused_before_anything_is_asked(
    fake: FakeEndpoint, other: FakeEndpoint, service: Service, roots: dict[str, str]
) -> None:
    fake.models, other.models = models(fake="/adapters/1"), models(base="/base", **roots)
    run = Run(at(service, fake.url, other.url), texts(10))
    assert isinstance(run.error, FatalError)
    assert f"{other.url}: 'fake' is served" in str(run.error)
    assert "all replicas must serve the same weights" in str(run.error)
    assert not fake.requests + other.requests


def test_a_replica_that_does_not_answer_at_the_start_is_left_out(fake: FakeEndpoint, service: Service) -> None:
    run = Run(at(service, f"http://127.0.0.1:{free_port()}/v1", fake.url), texts(30), concurrency=4)
    assert (len(run.replies), run.endpoint.meter.retries, run.error) == (30, 0, None)


@pytest.mark.usefixtures("short_outages")
def test_where_all_stay_away_the_stage_stops_as_with_one(
    fake: FakeEndpoint, other: FakeEndpoint, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.script = [says("a")]
    fake.answer = other.answer = lambda request: fails(503, "gone for lunch")
    run = Run(at(service, fake.url, other.url), texts(100), concurrency=4)
    assert isinstance(run.error, TransientError)
    assert "run again when it is back" in str(run.error)
    assert not run.aside


def test_an_outage_of_all_is_ridden_out(
    fake: FakeEndpoint, other: FakeEndpoint, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_OUT_S", 0.02)
    for endpoint in (fake, other):
        endpoint.script = [says("fine")] * 5 + [fails(503, "restarting")] * 12
    run = Run(at(service, fake.url, other.url), texts(60), concurrency=4)
    assert (len(run.replies), run.aside, run.error) == (60, {}, None)


def test_a_batch_has_one_address(service: Service) -> None:
    with pytest.raises(FatalError, match=r"judge\.batch: a batch is made at one address, and http://a, http://b are"):
        BatchApi(at(service, "http://a", "http://b"), "judge", "tickets", lambda seconds: None)


def test_rows_and_their_fingerprint_do_not_depend_on_the_replicas(
    fake: FakeEndpoint, other: FakeEndpoint, service: Service, tmp_path: Path
) -> None:
    """Stopped with two replicas, and finished with one of them: the bytes of a run with one."""
    rows = [{"prompt": [{"role": "user", "content": f"[ANNA] Platform {number}."}]} for number in range(30)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def generate(store: str, service: Service) -> tuple[str, bytes]:
        workshop = Workshop(open_store(str(tmp_path / store)), tmp_path / f"{store}-work")
        prompts = workshop.adopt(Stage("prompts", 0), {"prompts.jsonl": tmp_path / "prompts.jsonl"})
        made = generate_pairs(workshop, prompts, SamplingSettings(model="fake", concurrency=4), service)
        return made.fingerprint, workshop.file(made, COMPLETIONS).read_bytes()

    alone = generate("alone", service)
    answer, revoked = fake.answer, threading.Event()

    def revoke(request: Request) -> Answer:
        if len(other.requests) > 8:
            revoked.set()
        return fails(401, "revoked") if revoked.is_set() else answer(request)

    other.answer = fake.answer = revoke
    with pytest.raises(FatalError, match="revoked"):
        generate("both", at(service, fake.url, other.url))
    fake.answer, before = answer, len(fake.requests)
    assert generate("both", service) == alone
    assert len(fake.requests) - before < 30
    assert generate("both", at(service, other.url, fake.url)) == alone
