"""The benchmarks' endpoint: exact in its pace whatever the machine does, and the same for the same request."""

import http.client
import json
import urllib.request
from typing import Any

import pytest

from benchmarks.endpoint import Pace, Slots
from benchmarks.measure import Bench, serving
from benchmarks.mischief import FAULTS, VERDICT_FAULTS, Mischief, spoilt


def ask(bench: Bench, text: str = "hello", **parameters: Any) -> bytes:
    body = {"model": "bench", "messages": [{"role": "user", "content": text}]} | parameters
    request = urllib.request.Request(bench.url + "/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return answer.read()


def test_a_slot_goes_on_with_the_next_sequence_the_moment_it_is_free() -> None:
    slots = Slots(2)
    assert [slots.take(0.0, 1.0) for _ in range(5)] == [1.0, 1.0, 2.0, 2.0, 3.0]
    assert slots.take(10.0, 1.0) == 11.0


def test_latency_follows_from_the_request_within_the_jitter() -> None:
    pace = Pace(latency=2.0, jitter=0.5)
    drawn = [pace.seconds(str(key)) for key in range(200)]
    assert drawn == [pace.seconds(str(key)) for key in range(200)]
    assert 1.0 <= min(drawn) < 1.1
    assert 2.9 < max(drawn) <= 3.0
    assert Pace(latency=2.0).seconds("any") == 2.0


def test_it_counts_what_it_was_asked_and_answers_the_same_request_the_same() -> None:
    with serving(Pace(latency=0.0)) as bench:
        first = ask(bench, seed=7, n=3)
        assert ask(bench, seed=7, n=3) == first
        last = json.loads(ask(bench, seed=9))["choices"][0]["message"]
        assert json.loads(first)["choices"][2]["message"] == last
        stats, calls = bench.stats(), bench.calls()
    assert (stats["requests"], stats["sequences"], stats["most_in_flight"]) == (3, 7, 3)
    assert calls[0][0] == calls[1][0]
    assert calls[0][0][2:] == calls[2][0]
    assert all(answered and answered >= arrived for _, arrived, answered in calls)


def test_faults_come_in_their_share_and_again_for_the_same_seed() -> None:
    mischief = Mischief(faults=0.3, fault_seed=1)
    drawn = [mischief.drawn(str(key), attempt=0, verdict=True) for key in range(2000)]
    assert drawn == [mischief.drawn(str(key), attempt=0, verdict=True) for key in range(2000)]
    assert {fault for fault in drawn if fault} == {*FAULTS, *VERDICT_FAULTS}
    assert sum(fault is not None for fault in drawn) == pytest.approx(600, rel=0.1)
    assert drawn != [mischief.drawn(str(key), attempt=1, verdict=True) for key in range(2000)]


def test_during_an_outage_nothing_is_answered() -> None:
    with serving(Pace(latency=0.0), Mischief(outage_after=2, outage_s=3600)) as bench:
        ask(bench)
        for _ in range(4):
            with pytest.raises((OSError, http.client.HTTPException)):
                ask(bench)
        assert bench.stats()["faults"] == {"outage": 4}


@pytest.mark.parametrize("fault", ["truncated JSON", "200 with an error object", "empty choices", "best = worst"])
def test_a_spoilt_completion_is_no_usable_one(fault: str) -> None:
    verdict = json.dumps({"reason": "r", "best": 1, "worst": 2, "tie": False})
    whole = json.dumps({"model": "bench", "choices": [{"message": {"content": verdict}}]})
    assert spoilt(whole, fault) != whole
