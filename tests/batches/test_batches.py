"""Requests in batches: what is submitted, what comes back, what is asked again and what stops the work."""

import json

import pytest

from nothing_gpt import batches
from nothing_gpt.config import Price
from nothing_gpt.errors import FatalError, TransientError
from tests.batches.stand import KEY, Stand, echoes, texts
from tests.fake_batches import FakeBatches
from tests.fake_endpoint import Answer, fails, last, says


def test_every_request_is_submitted_in_one_batch_and_every_reply_handed_over(
    stand: Stand, provider: FakeBatches
) -> None:
    meter = stand.run(texts(20))
    assert stand.said() == echoes(20)
    assert len(provider.batches) == 1
    assert set(provider.paid.values()) == {1}
    assert (meter.calls, meter.prompt_tokens, meter.completion_tokens) == (20, 200, 100)


def test_a_line_is_the_request_with_the_model(stand: Stand, provider: FakeBatches) -> None:
    stand.run(["hello"])
    (batch,) = provider.batches.values()
    line = json.loads(provider.files[batch["input_file_id"]])
    assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
    assert line["body"] == {
        "model": "fake",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 100,
    }


def test_nothing_to_ask_reaches_no_endpoint(stand: Stand, provider: FakeBatches) -> None:
    assert stand.run([]).calls == 0
    assert provider.steps == []


def test_the_key_of_a_batch_is_stored_before_it_is_submitted_and_stands_in_its_metadata(
    stand: Stand, provider: FakeBatches
) -> None:
    stored: list[str] = []

    def before(step: str) -> None:
        if step == "POST /batches":
            stored.extend(ticket["key"] for ticket in stand.tickets())

    provider.before = before
    stand.run(texts(3))
    (batch,) = provider.batches.values()
    assert [batch["metadata"]["nothing_gpt"]] == stored


def test_batches_are_split_at_the_most_requests(
    stand: Stand, provider: FakeBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MOST_REQUESTS", 3)
    stand.run(texts(7))
    assert stand.said() == echoes(7)
    assert [_size(provider, batch) for batch in provider.batches] == [3, 3, 1]


def test_batches_are_split_at_the_most_bytes(
    stand: Stand, provider: FakeBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.run(["t"])
    line = len(provider.files["file-0"])
    monkeypatch.setattr(batches, "MOST_BYTES", 2 * line)
    stand.run("abcde")
    assert [_size(provider, batch) for batch in provider.batches] == [1, 2, 2, 1]
    assert all(len(provider.files[batch["input_file_id"]]) <= 2 * line for batch in provider.batches.values())


def test_polls_come_at_growing_intervals(stand: Stand, provider: FakeBatches) -> None:
    provider.courses = [("validating", *["in_progress"] * 8, "completed")]
    stand.run(texts(1))
    assert stand.slept[0] == 10
    assert stand.slept == sorted(stand.slept)
    assert stand.slept[-1] == 60


def test_a_batch_that_ends_before_an_earlier_one_is_collected_first(
    stand: Stand, provider: FakeBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MOST_REQUESTS", 1)
    provider.courses = [("validating", *["in_progress"] * 9, "completed"), ("validating", "completed")]
    stand.run(texts(2))
    assert list(stand.replies) == ["t1", "t0"]


def test_a_batch_may_take_its_24_hours(stand: Stand, provider: FakeBatches) -> None:
    provider.courses = [("validating", *["in_progress"] * 1440, "completed")]
    stand.run(texts(2))
    assert sum(stand.slept) > 23 * 3600
    assert stand.said() == echoes(2)


def test_a_row_that_the_endpoint_refuses_is_set_aside_with_its_status_and_no_other_is_touched(
    stand: Stand, provider: FakeBatches
) -> None:
    provider.fate = lambda request, batch: fails(400, "too long") if last(request) == "t1" else says("fine")
    stand.run(texts(3))
    assert sorted(stand.replies) == ["t0", "t2"]
    assert (str(stand.aside["t1"]), stand.aside["t1"].status) == ("400 too long", 400)
    assert len(provider.batches) == 1


def test_a_row_that_was_set_aside_is_asked_again_by_the_next_run(stand: Stand, provider: FakeBatches) -> None:
    provider.fate = lambda request, batch: fails(400, "no") if (last(request), batch) == ("t1", 0) else says("fine")
    stand.run(texts(3))
    assert list(stand.aside) == ["t1"]
    stand.run(texts(3))
    assert sorted(stand.replies) == texts(3)
    assert provider.submitted == {"t0": 1, "t1": 2, "t2": 1}


@pytest.mark.parametrize(
    "fault",
    [
        fails(429, "slow down"),
        fails(500, "oops"),
        fails(503, "later"),
        None,
        Answer(body=b'{"error": {"message": "overloaded"}}'),
        Answer(body=b'{"choices": []}'),
    ],
    ids=["429", "500", "503", "missing", "an error in a 200", "no choices"],
)
def test_a_fault_that_passes_is_asked_again_in_a_next_batch(
    stand: Stand, provider: FakeBatches, fault: Answer | None
) -> None:
    provider.fate = lambda request, batch: fault if (last(request), batch) == ("t1", 0) else says("fine")
    meter = stand.run(texts(3))
    assert (sorted(stand.replies), stand.aside) == (texts(3), {})
    assert provider.submitted == {"t0": 1, "t1": 2, "t2": 1}
    assert meter.retries == 1


def test_a_row_that_fails_in_every_batch_is_set_aside_after_a_few(stand: Stand, provider: FakeBatches) -> None:
    provider.fate = lambda request, batch: fails(500, "oops") if last(request) == "t1" else says("fine")
    assert stand.run(texts(3)).retries == 2
    assert sorted(stand.replies) == ["t0", "t2"]
    assert "500 oops (3 times)" in str(stand.aside["t1"])
    assert (stand.aside["t1"].attempts, provider.submitted["t1"]) == (3, 3)


@pytest.mark.parametrize("end", ["expired", "cancelled"])
def test_what_a_batch_did_not_come_to_is_submitted_anew_and_what_it_answered_is_kept(
    stand: Stand, provider: FakeBatches, end: str
) -> None:
    provider.courses = [("validating", "in_progress", end)]
    provider.fate = lambda request, batch: says("fine") if batch or last(request) in ("t0", "t3") else None
    stand.run(texts(5))
    assert sorted(stand.replies) == texts(5)
    assert set(provider.paid.values()) == {1}
    assert [_size(provider, batch) for batch in provider.batches] == [5, 3]


def test_the_next_attempt_at_the_same_rows_has_another_key(stand: Stand, provider: FakeBatches) -> None:
    provider.courses = [("validating", "expired")]
    provider.fate = lambda request, batch: says("fine") if batch else None
    stand.run(texts(2))
    first, second = (batch["metadata"]["nothing_gpt"] for batch in provider.batches.values())
    assert (first[-2:], second[-2:], first[:-1]) == ("-1", "-2", second[:-1])


def test_a_batch_that_fails_as_a_whole_is_fatal_with_its_errors_and_submitted_anew_by_the_next_run(
    stand: Stand, provider: FakeBatches
) -> None:
    provider.courses = [("validating", "failed")]
    provider.errors = [{"code": "token_limit_exceeded", "message": "Enqueued token\nlimit reached", "line": None}]
    with pytest.raises(FatalError) as stop:
        stand.run(texts(2))
    assert "batch batch_0 failed: Enqueued token limit reached [token_limit_exceeded]" in str(stop.value)
    stand.run(texts(2))
    assert stand.said() == echoes(2)
    assert set(provider.paid.values()) == {1}


def test_a_row_with_an_error_and_an_answer_is_answered(stand: Stand, provider: FakeBatches) -> None:
    def spoil(lines: list[bytes]) -> list[bytes]:
        response = {"status_code": 400, "body": {"error": {"message": "no"}}}
        return [json.dumps(json.loads(line) | {"response": response}).encode() + b"\n" for line in lines] + lines

    provider.spoil = spoil
    stand.run(texts(2))
    assert (stand.said(), stand.aside) == (echoes(2), {})


def test_lines_that_are_doubled_or_of_unknown_rows_are_passed_over(stand: Stand, provider: FakeBatches) -> None:
    stranger = json.dumps({"custom_id": "nobody's", "response": {"status_code": 200, "body": {}}}).encode() + b"\n"
    provider.spoil = lambda lines: [stranger, *lines, *lines, b"\n", b'{"custom_id": ["a"]}\n', b"[1]\n"]
    meter = stand.run(texts(4))
    assert stand.said() == echoes(4)
    assert (meter.calls, set(provider.submitted.values())) == (4, {1})


def test_a_row_of_a_torn_line_is_asked_again(stand: Stand, provider: FakeBatches) -> None:
    provider.spoil = lambda lines: [*lines[:-1], lines[-1][:30]] if len(lines) > 1 else lines
    stand.run(texts(4))
    assert stand.said() == echoes(4)
    assert provider.submitted == {"t0": 2, "t1": 1, "t2": 1, "t3": 1}


def test_a_file_that_came_torn_is_read_again_before_anything_is_paid_twice(stand: Stand, provider: FakeBatches) -> None:
    def torn_once(step: str) -> Answer | None:
        if step == "GET /files/ID/content" and provider.steps.count(step) == 1:
            return Answer(body=provider.files["file-1"][:-30])
        return None

    provider.after = torn_once
    stand.run(texts(4))
    assert stand.said() == echoes(4)
    assert set(provider.submitted.values()) == {1}


def test_a_line_separator_within_a_reply_is_no_end_of_a_line(stand: Stand, provider: FakeBatches) -> None:
    text = "a\u2028b\x85c"
    provider.fate = lambda request, batch: says(text)
    provider.spoil = lambda lines: [json.dumps(json.loads(line), ensure_ascii=False).encode() + b"\n" for line in lines]
    stand.run(texts(1))
    assert stand.said() == {"t0": text}


STEPS = ["GET /batches", "POST /files", "POST /batches", "GET /batches/ID", "GET /files/ID/content"]
FAULTS = {
    "503": fails(503),
    "reset": Answer(body=b"{}", cut=True),
    "page": Answer(body=b"<p>", content_type="text/html"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("done", [False, True], ids=["not done", "done, but not answered"])
def test_a_fault_of_any_step_is_ridden_out_and_nothing_is_paid_twice(
    stand: Stand, provider: FakeBatches, step: str, fault: str, done: bool
) -> None:
    nth = 2 if step == "GET /batches" else 1  # a first list is the question whether there is a batch API

    def once(now: str) -> Answer | None:
        if now == step and provider.steps.count(step) == nth:
            sent.append(now)
            return FAULTS[fault]
        return fails(503) if (now, nth, provider.steps.count(now)) == ("POST /batches", 2, 1) else None

    sent: list[str] = []
    if done:
        provider.after = once
    else:
        provider.before = once
    stand.run(texts(4))
    assert sent == [step]
    assert stand.said() == echoes(4)
    assert set(provider.submitted.values()) == {1}


@pytest.mark.parametrize("step", STEPS)
def test_one_request_too_many_is_asked_again(stand: Stand, provider: FakeBatches, step: str) -> None:
    provider.before = lambda now: fails(429) if now == step and provider.steps.count(step) == 1 else None
    stand.run(texts(4))
    assert stand.said() == echoes(4)
    assert provider.steps.count(step) >= 2
    assert set(provider.submitted.values()) == {1}


def test_a_wait_that_the_endpoint_names_is_kept(stand: Stand, provider: FakeBatches) -> None:
    provider.before = lambda step: fails(429, Retry_After="77") if len(provider.steps) == 1 else None
    stand.run(texts(1))
    assert stand.slept[0] == 77


def test_silence_past_the_deadline_stops_cleanly_and_the_next_run_collects(stand: Stand, provider: FakeBatches) -> None:
    provider.before = lambda step: fails(503) if step == "GET /batches/ID" else None
    with pytest.raises(TransientError, match=r"no answer for 1\d minutes"):
        stand.run(texts(3))
    assert 600 <= sum(stand.slept) < 700
    provider.before = lambda step: None
    stand.run(texts(3))
    assert stand.said() == echoes(3)
    assert set(provider.submitted.values()) == {1}


@pytest.mark.parametrize("status", [404, 405, 501])
@pytest.mark.parametrize("step", ["GET /batches", "POST /files", "POST /batches"])
def test_an_endpoint_without_the_batch_api_is_fatal_at_once(
    stand: Stand, provider: FakeBatches, status: int, step: str
) -> None:
    provider.before = lambda now: fails(status, "Not Found") if now == step else None
    with pytest.raises(FatalError) as stop:
        stand.run(texts(3))
    assert str(stop.value) == f"judge.batch: {provider.url} has no batch API ({status}); set it to false"
    assert (stand.slept, provider.batches) == ([], {})


def test_a_web_page_in_place_of_the_list_is_no_batch_api(stand: Stand, provider: FakeBatches) -> None:
    provider.before = lambda step: Answer(body=b"<html>hello</html>", content_type="text/html")
    with pytest.raises(FatalError, match=r"judge\.batch: .* has no batch API"):
        stand.run(texts(3))


def test_a_batch_that_is_no_longer_there_is_fatal_and_not_paid_anew(stand: Stand, provider: FakeBatches) -> None:
    provider.before = lambda step: fails(404, "No batch found") if step == "GET /batches/ID" else None
    with pytest.raises(FatalError, match="batch batch_0, or its file, is not there; set the key"):
        stand.run(texts(3))
    with pytest.raises(FatalError):
        stand.run(texts(3))
    assert set(provider.submitted.values()) == {1}


def test_a_completed_batch_whose_file_is_not_there_yet_is_waited_for(stand: Stand, provider: FakeBatches) -> None:
    def late(step: str) -> Answer | None:
        batch = provider.batches.get("batch_0", {})
        if step == "GET /batches/ID" and batch["status"] == "completed" and not early:
            early.append(step)
            return Answer(body=json.dumps(batch | {"output_file_id": None}).encode())
        return None

    early: list[str] = []
    provider.after = late
    stand.run(texts(3))
    assert early
    assert stand.said() == echoes(3)
    assert set(provider.submitted.values()) == {1}


def test_a_quota_that_is_used_up_stops_the_work_and_the_next_run_asks_for_the_rest(
    stand: Stand, provider: FakeBatches
) -> None:
    used_up = fails(429, "You exceeded your current quota", code="insufficient_quota")
    provider.fate = lambda request, batch: used_up if (last(request), batch) == ("t1", 0) else says("fine")
    with pytest.raises(FatalError, match="the quota is used up"):
        stand.run(texts(3))
    assert sorted(stand.replies) == ["t0", "t2"]
    stand.run(texts(3))
    assert set(provider.paid.values()) == {1}
    assert sorted(stand.replies) == texts(3)


def test_a_status_is_understood_however_it_is_written(stand: Stand, provider: FakeBatches) -> None:
    provider.courses = [("VALIDATING", "Completed")]
    stand.run(texts(2))
    assert stand.said() == echoes(2)


def test_a_batch_that_does_not_end_is_given_up_a_day_after_its_window(stand: Stand, provider: FakeBatches) -> None:
    provider.courses = [("validating", "on_hold", *["paused"] * 4000)]
    with pytest.raises(FatalError, match=r"batch batch_0 is still 'paused' after 48 hours; .* delete the file in "):
        stand.run(texts(2))
    assert 48 * 3600 < sum(stand.slept) < 49 * 3600


PRICE = Price(input=0, output=1e4)
"""A request of 100 tokens costs at most half a dollar in a batch, and an answer of 5 tokens two and a half cents."""


def test_a_batch_costs_half(stand: Stand) -> None:
    assert stand.run(texts(4), price=PRICE).cost_usd == pytest.approx(4 * 0.025)


def test_only_what_surely_fits_the_spending_limit_is_submitted(stand: Stand, provider: FakeBatches) -> None:
    stand.run(texts(4), price=PRICE, max_cost_usd=1.2)
    assert stand.said() == echoes(4)
    assert [_size(provider, batch) for batch in provider.batches] == [2, 2]


def test_the_work_stops_before_the_batch_that_might_exceed_the_limit_and_can_go_on(
    stand: Stand, provider: FakeBatches
) -> None:
    with pytest.raises(FatalError) as stop:
        stand.run(texts(4), price=PRICE, max_cost_usd=0.51)
    assert str(stop.value) == (
        "judge.max_cost_usd: 0.51 would be exceeded after 1 calls; the answers so far are kept; raise the limit and "
        "run again"
    )
    stand.run(texts(4), price=PRICE, max_cost_usd=10)
    assert stand.said() == echoes(4)
    assert set(provider.submitted.values()) == {1}


def test_what_a_batch_under_way_may_cost_counts(
    stand: Stand, provider: FakeBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MOST_REQUESTS", 1)
    provider.courses = [("validating", "completed"), ("validating", *["in_progress"] * 9, "completed")]
    stand.run(texts(3), price=PRICE, max_cost_usd=1.02)
    assert stand.said() == echoes(3)
    third = _nth(provider.steps, "POST /batches", 3)
    assert _nth(provider.steps, "GET /files/ID/content", 2) < third, "it was submitted while the second was under way"


def test_what_earlier_runs_spent_counts(stand: Stand, provider: FakeBatches) -> None:
    stand.run(texts(4), price=PRICE)
    with pytest.raises(FatalError, match="after 4 calls"):
        stand.run(texts(5), price=PRICE, max_cost_usd=0.55, kept=list(stand.replies.values()))
    assert len(provider.batches) == 1


def test_what_others_spent_under_the_same_limit_counts(stand: Stand, provider: FakeBatches) -> None:
    with pytest.raises(FatalError, match=r"judge\.max_cost_usd: 0\.55 would be exceeded"):
        stand.run(texts(1), price=PRICE, max_cost_usd=0.55, others_usd=0.1)
    assert provider.batches == {}


def test_a_limit_without_a_price_is_fatal_before_anything_is_asked(stand: Stand, provider: FakeBatches) -> None:
    with pytest.raises(FatalError, match=r"no price is known for fake; add it to judge\.prices"):
        stand.run(texts(1), max_cost_usd=1)
    assert provider.steps == []


def test_the_key_is_in_no_message(stand: Stand, provider: FakeBatches) -> None:
    provider.before = lambda step: fails(401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(FatalError, match="the key is refused") as stop:
        stand.run(texts(1))
    assert KEY not in str(stop.value)
    assert provider.authorization == [f"Bearer {KEY}"]


def test_a_request_whose_body_changed_is_another_request(stand: Stand, provider: FakeBatches) -> None:
    stand.run(texts(2))
    stand.replies.clear()
    stand.run(texts(2), model="fake-large")
    assert [_size(provider, batch) for batch in provider.batches] == [2, 2]


def _nth(steps: list[str], step: str, n: int) -> int:
    return [at for at, now in enumerate(steps) if now == step][n - 1]


def _size(provider: FakeBatches, batch: str) -> int:
    return len(provider.files[provider.batches[batch]["input_file_id"]].splitlines())
