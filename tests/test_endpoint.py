"""The client: what each fault means, what is tried again and what is not, and what it never does."""

import asyncio
import itertools
import threading
import time
from dataclasses import replace

import pytest

from nothing_gpt import endpoint as client
from nothing_gpt.config import EndpointSettings
from nothing_gpt.endpoint import Endpoint, Service
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.processes import free_port
from nothing_gpt.replies import Reply
from tests.asking import Run, texts
from tests.fake_endpoint import Answer, FakeEndpoint, Request, fails, last, says, serving

pytestmark = pytest.mark.usefixtures("hasty")


def test_a_reply_is_read_and_metered(fake: FakeEndpoint, service: Service) -> None:
    fake.script = [says("one", "two", finish_reason="length", model="fake-2", prompt_tokens=7, completion_tokens=9)]
    run = Run(service, ["a"], n=2)
    reply = run.replies["a"]
    assert [(choice.text, choice.finish_reason) for choice in reply.choices] == [("one", "length"), ("two", "length")]
    assert (reply.model, reply.prompt_tokens, reply.completion_tokens) == ("fake-2", 7, 9)
    figures = run.endpoint.meter.figures()
    assert (figures["calls"], figures["retries"], figures["prompt_tokens"], figures["cost_usd"]) == (1, 0, 7, None)


@pytest.mark.parametrize(
    "answer",
    [
        fails(401, "Incorrect API key provided"),
        fails(403, "forbidden"),
        fails(400, "API key not valid. Please pass a valid API key."),
        Answer(400, b'[{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}]'),
    ],
)
def test_a_refused_key_is_fatal_at_once(fake: FakeEndpoint, service: Service, answer: Answer) -> None:
    fake.answer = lambda request: answer
    run = Run(service, texts(50), concurrency=4)
    assert isinstance(run.error, FatalError)
    assert "the key is refused" in str(run.error)
    assert len(fake.requests) <= 4


def test_a_model_that_is_not_served_is_fatal_and_those_served_are_named(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = lambda request: fails(404, "The model `mine` does not exist.")
    fake.models = Answer(body=b'{"object": "list", "data": [{"id": "base"}, {"id": "seinfeld"}]}')
    run = Run(replace(service, model="mine"), ["a"])
    assert isinstance(run.error, FatalError)
    assert str(run.error) == f"{fake.url}: does not serve 'mine'; it serves: base, seinfeld"


def test_an_address_without_v1_is_fatal_and_says_so(fake: FakeEndpoint, service: Service) -> None:
    run = Run(replace(service, connect=lambda: fake.url.removesuffix("/v1")), ["a"])
    assert isinstance(run.error, FatalError)
    assert "not an OpenAI-compatible endpoint" in str(run.error)
    assert "/v1" in str(run.error)


def test_a_web_page_in_place_of_an_endpoint_is_fatal(fake: FakeEndpoint, service: Service) -> None:
    fake.models = Answer(body=b"<html>hello</html>", content_type="text/html")
    fake.answer = lambda request: fake.models
    run = Run(service, ["a"])
    assert isinstance(run.error, FatalError)
    assert "not an OpenAI-compatible endpoint" in str(run.error)
    assert len(fake.requests) == 1


@pytest.mark.parametrize("address", ["127.0.0.1:8000/v1", "", "file:///v1", "gemini"])
def test_an_address_that_is_none_is_fatal(service: Service, address: str) -> None:
    run = Run(replace(service, connect=lambda: address), ["a"])
    assert isinstance(run.error, FatalError)
    assert "http://host:port/v1" in str(run.error)


@pytest.mark.parametrize(
    "answer",
    [
        fails(400, "This model's maximum context length is 2048 tokens."),
        fails(422, "content refused"),
        fails(413, "too large"),
    ],
)
def test_a_request_that_is_refused_is_a_bad_row_and_not_tried_again(
    fake: FakeEndpoint, service: Service, answer: Answer
) -> None:
    fake.answer = lambda request: answer if last(request) == "t1" else says("fine")
    run = Run(service, texts(3))
    assert (sorted(run.replies), list(run.aside), run.error) == (["t0", "t2"], ["t1"], None)
    assert run.aside["t1"].startswith(str(answer.status))
    assert len(fake.requests) == 3


@pytest.mark.parametrize(
    "answer",
    [
        fails(429, "You exceeded your current quota", code="insufficient_quota"),
        fails(402, "Insufficient balance"),
        fails(429, "Quota exceeded for metric: generate_requests_per_day, limit: PerDayPerProject"),
    ],
)
def test_a_quota_that_is_used_up_is_fatal_at_once(fake: FakeEndpoint, service: Service, answer: Answer) -> None:
    fake.answer = lambda request: answer
    run = Run(service, texts(20), concurrency=2)
    assert isinstance(run.error, FatalError)
    assert "the quota is used up" in str(run.error)
    assert len(fake.requests) <= 2


@pytest.mark.parametrize(
    "fault",
    [
        fails(500, "oops"),
        fails(502),
        fails(503, "loading"),
        fails(529),
        fails(408),
        fails(409),
        fails(429, "slow down"),
        replace(says("cut"), cut=True),
        Answer(body=says("cut").body[:-20]),
        Answer(body=b""),
        Answer(body=b'{"choices": [{"message": {"content": "\xff"}}]}'),
        Answer(body=b'{"id": "1", "choices": []}'),
        Answer(body=b'{"id": "1", "choices": null}'),
        Answer(body=b'{"choices": [{"text": "no message"}]}'),
        Answer(body=b'{"choices": "text"}'),
        Answer(body=b"[1, 2]"),
        Answer(body=b'{"error": {"message": "upstream error", "code": 502}}'),
    ],
    ids=lambda fault: f"{fault.status} {fault.body[:40]!r}{' cut' * fault.cut}",
)
def test_a_fault_that_may_pass_is_tried_again(fake: FakeEndpoint, service: Service, fault: Answer) -> None:
    fake.script = [fault, fault]
    run = Run(service, ["a"])
    assert run.error is None
    assert run.replies["a"].choices[0].text == "[JERRY] a 0"
    assert (run.endpoint.meter.calls, run.endpoint.meter.retries) == (1, 2)


def test_a_page_amid_replies_is_a_fault_that_may_pass(fake: FakeEndpoint, service: Service) -> None:
    fake.script = [says("fine"), Answer(body=b"<html>bad gateway</html>", content_type="text/html")]
    run = Run(service, texts(2), concurrency=1)
    assert (len(run.replies), run.error) == (2, None)


def test_a_reply_without_usage_model_or_content_is_still_one(fake: FakeEndpoint, service: Service) -> None:
    fake.script = [Answer(body=b'{"choices": [{"message": {"content": null}}]}')]
    reply = Run(service, ["a"]).replies["a"]
    assert (reply.choices[0].text, reply.choices[0].finish_reason, reply.model, reply.prompt_tokens) == ("", "", "", 0)


def test_half_a_character_in_a_reply_becomes_a_question_mark(fake: FakeEndpoint, service: Service) -> None:
    fake.script = [says("a \ud83d b")]
    assert Run(service, ["a"]).replies["a"].choices[0].text == "a ? b"


def test_a_client_waits_as_long_as_retry_after_says(fake: FakeEndpoint, service: Service) -> None:
    fake.script = [fails(429, "slow down", retry_after="0.4")]
    started = time.monotonic()
    assert Run(service, ["a"]).error is None
    assert time.monotonic() - started > 0.4


@pytest.mark.parametrize("value", ["soon", "-3", "nan"])
def test_a_retry_after_that_makes_no_sense_is_passed_over(fake: FakeEndpoint, service: Service, value: str) -> None:
    fake.script = [fails(429, "slow down", retry_after=value)]
    assert Run(service, ["a"]).error is None


def test_a_burst_of_refusals_halves_the_window_once_and_replies_widen_it(fake: FakeEndpoint, service: Service) -> None:
    fake.script = [fails(429, "slow down")] * 8
    run = Run(service, texts(8), concurrency=8)
    assert run.endpoint.window.limit == pytest.approx(4 + 8 / 4, abs=0.7)
    assert Run(service, texts(60), concurrency=8).endpoint.window.limit == int(client.AHEAD * 8)


def test_a_row_that_is_refused_as_one_too_many_is_tried_however_often_that_is(
    fake: FakeEndpoint, service: Service
) -> None:
    refusals = itertools.count()
    often = 3 * client.ROW_ATTEMPTS
    fake.answer = lambda request: (
        fails(429, "slow down") if last(request) == "t0" and next(refusals) < often else says("x", seconds=0.05)
    )
    run = Run(service, texts(200), concurrency=8)
    assert [last(request) for request in fake.requests].count("t0") == often + 1
    assert (len(run.replies), run.aside, run.error) == (200, {}, None)


@pytest.mark.usefixtures("last_rows_given_up")
def test_a_row_that_always_fails_is_set_aside_while_the_others_finish(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = lambda request: fails(500, "cannot do this one") if last(request) == "t3" else says("x", seconds=0.02)
    run = Run(service, texts(60), concurrency=4)
    assert (len(run.replies), list(run.aside), run.error) == (59, ["t3"], None)
    assert "500 cannot do this one" in run.aside["t3"]


@pytest.mark.usefixtures("last_rows_given_up")
def test_the_last_row_is_set_aside_where_it_always_fails(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = lambda request: fails(500, "no") if last(request) == "t9" else says("x")
    run = Run(service, texts(10), concurrency=1)
    assert (len(run.replies), list(run.aside), run.error) == (9, ["t9"], None)


def test_an_outage_midway_is_ridden_out_and_sets_no_row_aside(fake: FakeEndpoint, service: Service) -> None:
    fake.script = [says("fine", seconds=0.01)] * 10 + [fails(503, "restarting")] * (8 * 3 * client.ROW_ATTEMPTS)
    run = Run(service, texts(40))
    assert (len(run.replies), run.aside, run.error) == (40, {}, None)


def test_an_endpoint_that_is_not_up_yet_is_waited_for(service: Service) -> None:
    port = free_port()
    late: list[FakeEndpoint] = []
    late_service = replace(service, connect=lambda: f"http://127.0.0.1:{port}/v1")

    async def run() -> Reply:
        async with Endpoint(late_service, EndpointSettings(concurrency=8), "judge") as endpoint:
            asked = [asyncio.create_task(endpoint.chat([{"role": "user", "content": "a"}], 10)) for _ in range(8)]
            while endpoint.meter.retries < 20 * client.ROW_ATTEMPTS:
                await asyncio.sleep(0.01)
            with serving(port) as server:
                late.append(server)
                return (await asyncio.gather(*asked))[0]

    assert asyncio.run(run()).choices[0].text == "[JERRY] a 0"
    assert len(late[0].requests) == 8


def test_an_endpoint_that_was_never_reached_is_fatal_before_the_deadline(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_ANSWER_S", 0.25)
    monkeypatch.setattr(client, "DEADLINE_S", 600.0)
    started = time.monotonic()
    run = Run(replace(service, connect=lambda: f"http://127.0.0.1:{free_port()}/v1"), texts(100), concurrency=8)
    assert isinstance(run.error, FatalError)
    assert "cannot be reached" in str(run.error)
    assert "check the address" in str(run.error)
    assert not run.aside
    assert 0.25 < time.monotonic() - started < 60


@pytest.mark.usefixtures("short_outages")
def test_an_endpoint_that_answered_and_stays_away_stops_the_stage_after_the_deadline(
    fake: FakeEndpoint, service: Service
) -> None:
    fake.script = [says("a")]
    fake.answer = lambda request: fails(503, "gone for lunch")
    run = Run(service, texts(100), concurrency=8)
    assert isinstance(run.error, TransientError)
    assert "run again when it is back" in str(run.error)
    assert not run.aside
    assert len(run.replies) == 1


@pytest.mark.parametrize(("n", "concurrency"), [(1, 5), (3, 8), (3, 3)])
def test_sequences_in_flight_never_exceed_the_concurrency_and_reach_it(
    fake: FakeEndpoint, service: Service, n: int, concurrency: int
) -> None:
    most = int(client.AHEAD * concurrency) // n * n
    full = threading.Event()

    def answer(request: Request) -> Answer:
        if fake.most_in_flight >= most or not full.wait(60):
            full.set()
        return says(*["x"] * n, seconds=0.02)

    fake.answer = answer
    Run(service, texts(30), n=n, concurrency=concurrency)
    assert fake.most_in_flight == most


def test_one_slow_answer_holds_up_nothing(fake: FakeEndpoint, service: Service) -> None:
    all_asked = threading.Event()

    def answer(request: Request) -> Answer:
        if len(fake.requests) >= 20:
            all_asked.set()
        return says("in time" if last(request) != "t0" or all_asked.wait(20) else "held up")

    fake.answer = answer
    run = Run(service, texts(20), concurrency=2)
    assert {reply.choices[0].text for reply in run.replies.values()} == {"in time"}


def test_after_a_fatal_answer_nothing_new_starts_and_what_is_in_flight_is_kept(
    fake: FakeEndpoint, service: Service
) -> None:
    all_there, refused = threading.Barrier(4), threading.Event()

    def answer(request: Request) -> Answer:
        all_there.wait(60)
        if last(request) == "t3":
            refused.set()
            return fails(401, "revoked")
        refused.wait(60)
        return says("kept", seconds=0.5)

    fake.answer = answer
    run = Run(service, texts(50), concurrency=4)
    assert isinstance(run.error, FatalError)
    assert set(run.replies) == {"t0", "t1", "t2"}
    assert len(fake.requests) == 4


def test_after_a_fatal_answer_no_retry_is_sent_and_none_is_waited_for(
    fake: FakeEndpoint, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_backoff", lambda attempt: 600.0)
    both_there = threading.Barrier(2)

    def answer(request: Request) -> Answer:
        both_there.wait(60)
        return fails(503) if last(request) == "t0" else replace(fails(401), seconds=0.2)

    fake.answer = answer
    started = time.monotonic()
    run = Run(service, texts(2))
    assert isinstance(run.error, FatalError)
    assert len(fake.requests) == 2
    assert time.monotonic() - started < 60


def test_retry_after_holds_up_all_requests(fake: FakeEndpoint, service: Service) -> None:
    arrivals: list[float] = []
    turn = itertools.count()

    def answer(request: Request) -> Answer:
        arrivals.append(time.monotonic())
        return fails(429, "slow down", retry_after="0.5") if next(turn) == 0 else says("x")

    fake.answer = answer
    assert Run(service, texts(20), concurrency=1).error is None
    assert arrivals[1] - arrivals[0] > 0.45


def test_an_endpoint_that_asks_to_come_back_after_the_deadline_stops_the_stage(
    fake: FakeEndpoint, service: Service
) -> None:
    fake.answer = lambda request: fails(429, "slow down", retry_after="3600")
    run = Run(service, texts(50), concurrency=2)
    assert isinstance(run.error, FatalError)
    assert "it asks to come back in 60 minutes" in str(run.error)
    assert len(fake.requests) <= 2


@pytest.mark.usefixtures("last_rows_given_up")
@pytest.mark.parametrize("models", [None, fails(404)], ids=["with a list of models", "without"])
def test_last_rows_that_always_fail_are_set_aside_where_the_endpoint_is_there(
    fake: FakeEndpoint, service: Service, models: Answer | None
) -> None:
    fake.models = models or fake.models
    fake.answer = lambda request: fails(500, "no") if last(request) in ("t7", "t8", "t9") else says("x")
    run = Run(service, texts(10), concurrency=8)
    assert (len(run.replies), sorted(run.aside), run.error) == (7, ["t7", "t8", "t9"], None)


@pytest.mark.usefixtures("short_outages", "last_rows_given_up")
def test_an_outage_at_the_end_sets_no_row_aside(fake: FakeEndpoint, service: Service) -> None:
    fake.models = fails(503, "restarting")
    fake.answer = lambda request: fails(503, "restarting") if last(request) in ("t7", "t8", "t9") else says("x")
    run = Run(service, texts(10), concurrency=8)
    assert (len(run.replies), run.aside, isinstance(run.error, TransientError)) == (7, {}, True)


def test_requests_that_wait_for_another_try_hold_up_no_others(
    fake: FakeEndpoint, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ROW_ATTEMPTS", 10**6)
    others = {f"t{number}" for number in range(3, 40)}
    answered = threading.Event()
    left, lock = set(others), threading.Lock()

    def answer(request: Request) -> Answer:
        if last(request) not in others:
            return says("at last") if answered.is_set() else fails(500, "busy")
        with lock:
            left.discard(last(request))
        if not left:
            answered.set()
        return says("x")

    fake.answer = answer
    run = Run(service, texts(40), concurrency=3)
    assert (len(run.replies), run.error) == (40, None)


def test_a_page_as_the_first_answer_of_an_endpoint_is_a_fault_that_passes(fake: FakeEndpoint, service: Service) -> None:
    fake.script = [Answer(body=b"<html>bad gateway</html>", content_type="text/html")]
    assert len(Run(service, texts(3)).replies) == 3


def test_an_answer_that_comes_byte_by_byte_and_never_ends_is_a_fault_that_may_pass(
    fake: FakeEndpoint, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT_S", 0.3)
    fake.script = [Answer(drips=True)]
    assert len(Run(service, ["a"]).replies) == 1


@pytest.mark.usefixtures("short_outages")
def test_a_row_that_is_always_one_too_many_is_set_aside_when_it_is_the_only_one_left(
    fake: FakeEndpoint, service: Service
) -> None:
    fake.answer = lambda request: fails(429, "too large") if last(request) == "t9" else says("x")
    run = Run(service, texts(10), concurrency=1)
    assert (len(run.replies), list(run.aside), run.error) == (9, ["t9"], None)
