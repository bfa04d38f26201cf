"""What an answer means: replies in our own shape, errors as one of three kinds, and how long to stay away."""

import json
import time
from email.utils import formatdate
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nothing_gpt.config import Price
from nothing_gpt.errors import BadRowError, FatalError, TransientError
from nothing_gpt.replies import Choice, Meter, RateLimitError, Reply, UnreachableError, classify, read_reply

URL = "http://judge/v1"


def refused(status: int, body: Any = None, **headers: str) -> Exception:
    request = httpx2.Request("POST", URL)
    response = httpx2.Response(status, request=request, headers={k.replace("_", "-"): v for k, v in headers.items()})
    return classify(openai.APIStatusError("no", response=response, body=body), URL, "fake", "sk-secret")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, None, FatalError),
        (403, None, FatalError),
        (400, {"message": "API key not valid. Please pass a valid API key."}, FatalError),
        (400, [{"error": {"message": "no", "details": [{"reason": "API_KEY_INVALID"}]}}], FatalError),
        (400, {"message": "This model's maximum context length is 2048 tokens."}, BadRowError),
        (400, {"message": "a prompt about an api key"}, BadRowError),
        (400, {"message": "nope", "code": "model_not_found"}, FatalError),
        (404, {"message": "The model does not exist"}, FatalError),
        (413, None, BadRowError),
        (422, None, BadRowError),
        (402, None, FatalError),
        (429, {"message": "slow down"}, RateLimitError),
        (429, {"message": "no", "code": "insufficient_quota"}, FatalError),
        (429, {"message": "no", "details": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}]}, FatalError),
        (429, {"message": "no", "details": [{"quotaId": "GenerateRequestsPerMinutePerProject"}]}, RateLimitError),
        (408, None, TransientError),
        (409, None, TransientError),
        (500, None, TransientError),
        (503, None, TransientError),
        (529, None, TransientError),
    ],
)
def test_what_a_status_means_depends_on_the_reply(status: int, body: Any, kind: type[Exception]) -> None:
    assert type(refused(status, body)) is kind


def test_a_bad_row_knows_its_status() -> None:
    error = refused(422, {"message": "no"})
    assert isinstance(error, BadRowError)
    assert error.status == 422


def test_a_broken_connection_is_told_from_an_answer_that_did_not_come_in_time() -> None:
    request = httpx2.Request("POST", URL)
    assert isinstance(classify(openai.APIConnectionError(request=request), URL, "fake"), UnreachableError)
    assert type(classify(openai.APITimeoutError(request), URL, "fake")) is TransientError


def waits(body: Any = None, **headers: str) -> float:
    error = refused(429, body, **headers)
    assert isinstance(error, RateLimitError)
    return error.retry_after


def test_retry_after_is_a_number_of_seconds() -> None:
    assert waits(retry_after="2.5") == 2.5


def test_retry_after_may_be_a_date() -> None:
    assert waits(retry_after=formatdate(time.time() + 1000, usegmt=True)) == pytest.approx(1000, abs=60)
    assert waits(retry_after=formatdate(time.time() - 60, usegmt=True)) == 0


def test_gemini_writes_the_delay_into_the_body() -> None:
    body = [{"error": {"message": "slow down", "details": [{"@type": "RetryInfo", "retryDelay": "17.4s"}]}}]
    assert waits(body) == 17.4


@pytest.mark.parametrize("value", ["soon", "-3", "nan", "inf", "", "9" * 400, "Fri, 99 Foo 2026 00:00:00 GMT"])
def test_a_retry_after_that_makes_no_sense_is_none(value: str) -> None:
    assert waits(retry_after=value) == 0


def test_an_unavailable_endpoint_that_says_when_to_come_back_is_obeyed() -> None:
    error = refused(503, None, retry_after="7")
    assert isinstance(error, RateLimitError)
    assert error.retry_after == 7


@given(st.binary())
def test_a_body_is_a_reply_or_a_fault(body: bytes) -> None:
    with pytest.raises(TransientError):
        read_reply(body, URL)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["choices", "message", "content", "model", "usage", "prompt_tokens"]), inner)
    ),
)


@given(JSON)
def test_any_json_is_a_reply_or_a_fault(value: Any) -> None:
    try:
        reply = read_reply(json.dumps(value).encode(), URL)
    except TransientError:
        return
    assert reply.choices
    json.dumps(reply.row()).encode()


def body(choice: dict[str, Any], **others: Any) -> bytes:
    return json.dumps({"choices": [choice], **others}).encode()


def test_content_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "image"}, {"type": "text", "text": "two"}]
    assert read_reply(body({"message": {"content": parts}}), URL).choices[0].text == "one two"


@pytest.mark.parametrize("tokens", [float("inf"), "many", [3]])
def test_counts_of_tokens_that_make_no_sense_are_a_fault(tokens: Any) -> None:
    with pytest.raises(TransientError):
        read_reply(body({"message": {"content": "x"}}, usage={"prompt_tokens": tokens}), URL)


def test_fewer_than_no_tokens_are_none() -> None:
    assert read_reply(body({"message": {"content": "x"}}, usage={"prompt_tokens": -5}), URL).prompt_tokens == 0


def test_a_body_nested_too_deep_is_a_fault() -> None:
    with pytest.raises(TransientError):
        read_reply(b"[" * 100_000, URL)


def test_a_reply_survives_its_row() -> None:
    reply = Reply("fake", [Choice("a", "stop"), Choice("b", "length")], 7, 9)
    assert Reply.of(json.loads(json.dumps(reply.row()))) == reply


def test_a_meter_counts_what_was_kept_into_the_cost_but_not_into_the_calls() -> None:
    meter = Meter(Price(input=1e6, output=2e6))
    meter.recall(Reply("fake", [Choice("a", "stop")], 3, 4))
    meter.count(Reply("fake", [Choice("a", "stop")], 1, 1), seconds=0.5)
    figures = meter.figures()
    assert (figures["calls"], figures["kept"], figures["cost_usd"]) == (1, 1, 4 * 1 + 5 * 2)


def test_an_unknown_price_is_no_cost() -> None:
    assert Meter().figures()["cost_usd"] is None


def test_latencies_are_percentiles_in_seconds() -> None:
    meter = Meter()
    for n in range(101):
        meter.count(Reply("fake", [Choice("a", "stop")], 0, 0), seconds=n / 100)
    figures = meter.figures()
    assert [figures[f"latency_p{p}_s"] for p in (50, 95, 99)] == [0.5, 0.95, 0.99]
