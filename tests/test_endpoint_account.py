"""What an endpoint costs and who may ask it: the spending limit, keys, and the models it serves."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from pydantic import SecretStr

from nothing_gpt.config import EndpointSettings, Price
from nothing_gpt.endpoint import Endpoint, Service
from nothing_gpt.errors import FatalError
from nothing_gpt.replies import MESSAGE_TOKENS, Choice, Meter, Reply
from tests.asking import Run, texts
from tests.fake_endpoint import Answer, FakeEndpoint, Request, fails, says

pytestmark = pytest.mark.usefixtures("hasty")

PRICE = Price(input=1000.0, output=10_000.0)
"""10 tokens in and 100 out cost 1.01 USD."""


def costly(seconds: float = 0.0) -> Callable[[Request], Answer]:
    return lambda request: says("x", prompt_tokens=10, completion_tokens=100, seconds=seconds)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_spending_limit_stops_before_it_is_exceeded(fake: FakeEndpoint, service: Service, concurrency: int) -> None:
    fake.answer = costly(0.02)
    run = Run(service, texts(50), concurrency=concurrency, price=PRICE, max_cost_usd=5.5)
    cost = run.endpoint.meter.cost_usd
    assert isinstance(run.error, FatalError)
    assert str(run.error).startswith("judge.max_cost_usd: 5.5 would be exceeded after")
    assert cost is not None
    assert 4 < cost <= 5.5
    assert len(run.replies) == len(fake.requests) == 5


def test_a_spending_limit_of_enough_stops_nothing(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = costly()
    run = Run(service, texts(5), price=PRICE, max_cost_usd=10.0)
    assert (len(run.replies), run.error) == (5, None)


def test_a_spending_limit_without_a_price_is_refused(service: Service) -> None:
    run = Run(service, ["a"], max_cost_usd=1.0)
    assert isinstance(run.error, FatalError)
    assert "add it to judge.prices" in str(run.error)


def test_the_most_a_request_can_cost_counts_bytes_and_all_its_tokens() -> None:
    meter = Meter(Price(input=2e6, output=3e6))
    assert meter.most([{"role": "user", "content": "éé"}], 10) == 2 * (4 + MESSAGE_TOKENS) + 3 * 10


def test_a_key_is_sent_without_its_line_end(fake: FakeEndpoint, service: Service) -> None:
    Run(replace(service, api_key=SecretStr("sk-1\n")), ["a"])
    assert fake.authorization == ["Bearer sk-1"]


@pytest.mark.parametrize("key", ["sk-1\nsk-2", "sk-\xe9", "sk\x00", "sk-1\r\nX-Evil: 1"])
def test_a_key_that_can_be_none_is_fatal_and_not_repeated(fake: FakeEndpoint, service: Service, key: str) -> None:
    run = Run(replace(service, api_key=SecretStr(key)), ["a"])
    assert isinstance(run.error, FatalError)
    assert "the key for it holds characters that no key has" in str(run.error)
    assert "sk" not in str(run.error)
    assert not fake.requests


@pytest.mark.usefixtures("short_outages")
@pytest.mark.parametrize("fault", [fails(401), fails(500), fails(400, "too long"), Answer(body=b"[")])
def test_no_error_holds_the_key(fake: FakeEndpoint, service: Service, fault: Answer) -> None:
    fake.answer = lambda request: fault
    run = Run(replace(service, api_key=SecretStr("sk-secret")), ["a"])
    assert run.error or run.aside
    assert "sk-secret" not in f"{run.error!r} {run.aside}"


def served(service: Service) -> list[str]:
    async def ask() -> list[str]:
        async with Endpoint(service, EndpointSettings(concurrency=1), "judge") as endpoint:
            return await endpoint.served()

    return asyncio.run(ask())


def test_the_served_models_are_named(service: Service) -> None:
    assert served(service) == ["fake"]


@pytest.mark.parametrize(
    "models",
    [
        Answer(body=b"<html>", content_type="text/html"),
        Answer(body=b"<html>"),
        Answer(body=b'{"data": 3}'),
        Answer(body=b"[]"),
    ],
)
def test_a_list_of_models_that_is_none_is_fatal(fake: FakeEndpoint, service: Service, models: Answer) -> None:
    fake.models = models
    with pytest.raises(FatalError, match="not an OpenAI-compatible endpoint"):
        served(service)


def test_a_key_that_the_endpoint_repeats_is_not_shown(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = lambda request: fails(401, "incorrect key sk-planted-secret given")
    run = Run(replace(service, api_key=SecretStr("sk-planted-secret")), ["a"])
    assert "incorrect key *** given" in str(run.error)


def test_what_was_spent_before_counts(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = costly()
    kept = [Reply("fake", [Choice("x", "stop")], 10, 100)] * 4
    run = Run(service, texts(5), price=PRICE, max_cost_usd=5.1, kept=kept)
    assert str(run.error).startswith("judge.max_cost_usd: 5.1 would be exceeded after 5 calls")
    assert len(run.replies) == 1


def test_a_request_waits_where_those_in_flight_may_cost_less_than_they_might(
    fake: FakeEndpoint, service: Service
) -> None:
    fake.answer = lambda request: says("x", prompt_tokens=10, completion_tokens=1, seconds=0.01)
    run = Run(service, texts(20), concurrency=8, price=PRICE, max_cost_usd=1.5)
    assert (len(run.replies), run.error) == (20, None)


def test_all_completions_of_a_request_are_reserved(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = lambda request: says("x", "y", "z", prompt_tokens=10, completion_tokens=300)
    run = Run(service, texts(5), n=3, price=PRICE, max_cost_usd=3.5)
    assert (len(run.replies), isinstance(run.error, FatalError)) == (1, True)


@pytest.mark.parametrize("concurrency", [1, 2, 4])
def test_a_spending_limit_and_retries_end_together(fake: FakeEndpoint, service: Service, concurrency: int) -> None:
    turn = itertools.count()
    fake.answer = lambda request: fails(503) if next(turn) % 3 else says("x", prompt_tokens=10, completion_tokens=100)
    run = Run(service, texts(50), concurrency=concurrency, price=PRICE, max_cost_usd=5.5)
    assert "judge.max_cost_usd: 5.5 would be exceeded after" in str(run.error)
    assert len(run.replies) >= 3


def test_replies_of_a_stranger_are_paid_for_too(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = lambda request: says("x", model="gpt-2", prompt_tokens=10, completion_tokens=100)
    run = Run(service, texts(2), concurrency=1, price=PRICE)
    assert run.endpoint.meter.cost_usd == pytest.approx(len(fake.requests) * 1.01)


def test_what_is_spent_elsewhere_counts_towards_the_limit(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = costly()
    run = Run(service, texts(5), concurrency=1, price=PRICE, max_cost_usd=5.1, others_usd=4.0)
    assert str(run.error).startswith("judge.max_cost_usd: 5.1 would be exceeded after 1 calls")


def test_a_key_is_hidden_before_a_message_is_cut(fake: FakeEndpoint, service: Service) -> None:
    key = "sk-" + "planted" * 40
    fake.answer = lambda request: fails(401, f"incorrect key {key} given")
    run = Run(replace(service, api_key=SecretStr(key)), ["a"])
    assert "incorrect key *** given" in str(run.error)


@pytest.mark.usefixtures("short_outages")
def test_a_page_that_repeats_the_key_is_shown_without_it(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = lambda request: Answer(body=b"Authorization: Bearer sk-planted-secret")
    run = Run(replace(service, api_key=SecretStr("sk-planted-secret")), ["a"])
    assert "sk-planted" not in f"{run.error} {run.aside}"
    assert "Bearer ***" in f"{run.error} {run.aside}"


def test_a_key_of_spaces_is_none(fake: FakeEndpoint, service: Service) -> None:
    Run(replace(service, api_key=SecretStr(" ")), ["a"])
    assert fake.authorization == ["Bearer none"]


def test_a_password_in_the_address_is_refused_and_not_shown(service: Service) -> None:
    run = Run(replace(service, connect=lambda: "http://me:hunter2@host/v1"), ["a"])
    assert isinstance(run.error, FatalError)
    assert "hunter2" not in str(run.error)
