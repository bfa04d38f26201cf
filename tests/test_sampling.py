"""Sampling: only what is missing is asked for, and the same replies make the same completions."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nothing_gpt.config import SamplingSettings
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.records import CompletionSet, Prompt, canonical_json
from nothing_gpt.sampling import Sampling, SetAside, whole_lines
from nothing_gpt.store import Store, open_store
from tests.fake_endpoint import Answer, FakeEndpoint, Request, fails, last, says
from tests.samples import prompt, prompts

pytestmark = pytest.mark.usefixtures("hasty")
SETTINGS = SamplingSettings()


def sample(
    store: Store,
    service: Service,
    wanted: list[Prompt],
    count: int = 3,
    distinct: int = 2,
    settings: SamplingSettings = SETTINGS,
) -> list[CompletionSet | SetAside]:
    with Sampling(store, settings, service, count, distinct) as sampling:
        sampling.ask(wanted, "generate")
        return [sampling.result(prompt) for prompt in wanted]


def completions(result: CompletionSet | SetAside) -> list[str]:
    assert isinstance(result, CompletionSet), result
    return result.completions


def cycling(*texts: str, finish_reason: str = "stop") -> Callable[[Request], Answer]:
    """Answers with the texts, one after the other over all requests; the last one for ever."""
    left = list(texts)
    return lambda request: says(
        *[left.pop(0) if len(left) > 1 else left[0] for _ in range(request["n"])], finish_reason=finish_reason
    )


def nobody() -> str:
    raise AssertionError("connected although nothing is missing")


def test_a_prompts_samples_are_asked_for_in_one_request_with_every_setting(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    sample(store, service, [prompt("a")])
    (request,) = fake.requests
    assert request["messages"] == prompt("a").messages
    assert (request["n"], request["temperature"], request["max_tokens"], request["frequency_penalty"]) == (
        3,
        0.9,
        256,
        0.5,
    )


def test_a_second_run_asks_for_nothing_and_does_not_even_connect(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    first = sample(store, service, prompts(5))
    assert sample(store, replace(service, connect=nobody), prompts(5)) == first
    assert len(fake.requests) == 5


def test_a_run_that_was_stopped_goes_on_where_it_was(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = lambda request: fails(401) if len(fake.requests) > 6 else says("a", "b", "c")
    with pytest.raises(FatalError, match="key is refused"):
        sample(store, service, prompts(20), settings=SamplingSettings(concurrency=3))
    kept = {last(request) for request in fake.requests[:6]}
    fake.requests.clear()
    fake.answer = lambda request: says("a", "b", "c")
    assert len(sample(store, service, prompts(20))) == 20
    assert {last(request) for request in fake.requests} == {f"scene {i}" for i in range(20)} - kept


def test_more_completions_ask_for_the_new_ones_with_their_own_seeds(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    three = completions(sample(store, service, [prompt()], count=3)[0])
    five = completions(sample(store, service, [prompt()], count=5)[0])
    first, second = fake.requests
    assert (first["n"], second["n"], second["seed"]) == (3, 2, first["seed"] + 3)
    assert five[:3] == three
    assert len(set(five)) == 5


def test_fewer_completions_are_the_first_of_those_there_are(fake: FakeEndpoint, service: Service, store: Store) -> None:
    five = completions(sample(store, service, [prompt()], count=5)[0])
    three = completions(sample(store, replace(service, connect=nobody), [prompt()], count=3)[0])
    assert three == five[:3]


def test_seeds_differ_between_prompts_and_between_base_seeds(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    sample(store, service, prompts(20))
    sample(store, service, prompts(20), settings=SamplingSettings(seed=43))
    seeds = [request["seed"] for request in fake.requests]
    assert len(set(seeds)) == 40
    assert all(0 <= seed < 2**31 - 16 for seed in seeds)


@pytest.mark.parametrize(
    "settings", [{"temperature": 1.0}, {"max_tokens": 10}, {"frequency_penalty": 0.1}, {"seed": 1}]
)
def test_what_changes_a_completion_asks_anew(
    fake: FakeEndpoint, service: Service, store: Store, settings: dict[str, Any]
) -> None:
    sample(store, service, prompts(2))
    sample(store, service, prompts(2), settings=SamplingSettings(**settings))
    assert len(fake.requests) == 4


@pytest.mark.parametrize("settings", [{"concurrency": 1}, {"max_failed_share": 0.5}, {"model": "other"}])
def test_what_changes_no_completion_asks_for_nothing(service: Service, store: Store, settings: dict[str, Any]) -> None:
    sample(store, service, prompts(2))
    sample(store, replace(service, connect=nobody), prompts(2), settings=SamplingSettings(**settings))


def test_another_adapter_under_the_same_name_is_asked_anew(fake: FakeEndpoint, service: Service, store: Store) -> None:
    sample(store, service, prompts(2))
    sample(store, replace(service, identity="adapter-2"), prompts(2))
    assert len(fake.requests) == 4


def test_an_endpoint_that_gives_fewer_choices_than_asked_is_asked_for_the_rest(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = lambda request: says(f"sample {request['seed']}")
    texts = completions(sample(store, service, [prompt()])[0])
    assert [request["n"] for request in fake.requests] == [3, 2, 1]
    assert len(texts) == 3


def test_an_endpoint_that_gives_more_choices_than_asked_is_not_believed(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = lambda request: says(*"abcdefg")
    assert completions(sample(store, service, [prompt()])[0]) == ["a", "b", "c"]


def test_completions_that_are_the_same_are_one(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = cycling("a", "b", " a \n")
    assert completions(sample(store, service, [prompt()])[0]) == ["a", "b"]


def test_a_prompt_that_is_always_answered_alike_is_degenerate(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = cycling("same")
    (result,) = sample(store, service, [prompt()])
    assert isinstance(result, SetAside)
    assert (result.degenerate, result.reason) == (True, "1 distinct completions")
    assert sum(request["n"] for request in fake.requests) <= 9


def test_more_are_asked_for_where_too_few_differ(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = cycling("same", "same", "same", "same", "other")
    assert completions(sample(store, service, [prompt()])[0]) == ["same", "other"]
    assert [request["n"] for request in fake.requests] == [3, 2]


def test_more_are_asked_for_in_place_of_empty_ones(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = cycling("a", "", " \n", "b", "c")
    assert completions(sample(store, service, [prompt()])[0]) == ["a", "b", "c"]


def test_a_prompt_answered_with_nothing_is_set_aside(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = cycling("")
    (result,) = sample(store, service, [prompt()], count=1, distinct=1)
    assert isinstance(result, SetAside)
    assert result.degenerate
    assert len(fake.requests) == 3


def test_a_completion_that_the_limit_cut_loses_its_unfinished_line(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.script = [says("[JERRY] one\n[GEORGE] tw", "[JERRY] on", "[ELAINE] a\n[KRAMER]", finish_reason="length")]
    fake.answer = lambda request: says("[NEWMAN] whole")
    (result,) = sample(store, service, [prompt()])
    assert isinstance(result, CompletionSet)
    assert result.completions == ["[JERRY] one", "[ELAINE] a", "[NEWMAN] whole"]
    assert result.truncated == [True, True, False]


@pytest.mark.parametrize(("text", "whole"), [("", ""), ("a", ""), ("a\n", "a"), ("a\nb", "a"), ("a\n\nb", "a")])
def test_whole_lines_are_those_with_an_end(text: str, whole: str) -> None:
    assert whole_lines(text) == whole


def test_a_refused_prompt_is_set_aside_with_its_reason(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = lambda request: fails(400, "context too long") if last(request) == "scene 1" else says("a", "b", "c")
    results = sample(store, service, prompts(3), settings=SamplingSettings(max_failed_share=0.5))
    assert [type(result) for result in results] == [CompletionSet, SetAside, CompletionSet]
    assert isinstance(results[1], SetAside)
    assert (results[1].degenerate, results[1].reason) == (False, "400 context too long")


def test_a_stage_fails_past_its_share_of_failures_and_keeps_what_it_has(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = lambda request: fails(400, "no") if last(request) in ("scene 0", "scene 1") else says("a", "b", "c")
    with pytest.raises(
        FatalError, match=r"generate: 2 of 10 prompts failed \(sampling.max_failed_share is 0.1\).*400 no"
    ):
        sample(store, service, prompts(10), settings=SamplingSettings(max_failed_share=0.1))
    fake.requests.clear()
    sample(store, service, prompts(10), settings=SamplingSettings(max_failed_share=0.2))
    assert sorted(map(last, fake.requests)) == ["scene 0", "scene 1"]


def test_an_endpoint_that_goes_away_is_transient_and_what_it_said_is_kept(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = lambda request: fails(503) if len(fake.requests) > 4 else says("a", "b", "c")
    with pytest.raises(TransientError):
        sample(store, service, prompts(30), settings=SamplingSettings(concurrency=6))
    fake.requests.clear()
    fake.answer = lambda request: says("a", "b", "c")
    sample(store, service, prompts(30))
    assert len(fake.requests) == 26


def test_the_same_replies_make_the_same_bytes_in_whatever_order_they_come(
    fake: FakeEndpoint, service: Service, tmp_path: Any
) -> None:
    outputs, orders, answer = set(), set(), fake.answer
    for seed in range(3):
        chance = random.Random(seed)
        fake.answer = lambda request, chance=chance: replace(answer(request), seconds=chance.uniform(0, 0.05))
        arrived = open_store(str(tmp_path / str(seed)))
        results = sample(arrived, service, prompts(20), settings=SamplingSettings(concurrency=32))
        outputs.add(canonical_json([completions(result) for result in results]))
        orders.add(b"".join(arrived.read(key) or b"" for key in arrived.list("journal")))
    assert len(outputs) == 1
    assert len(orders) > 1


@pytest.mark.parametrize("concurrency", [2, 7])
def test_no_more_sequences_than_allowed_are_in_flight_even_where_more_are_asked_for(
    fake: FakeEndpoint, service: Service, store: Store, concurrency: int
) -> None:
    """The second run wants one sample a prompt, and because it is like the others, then seven more."""
    settings = SamplingSettings(concurrency=concurrency)
    fake.answer = lambda request: says(*["same"] * request["n"], seconds=0.01)
    sample(store, service, prompts(4), count=3, settings=settings)
    sample(store, service, prompts(4), count=8, settings=settings)
    assert fake.most_in_flight <= concurrency
    assert sum(request["n"] for request in fake.requests) == 4 * (8 + 7 + 7)


def test_what_was_used_is_counted(fake: FakeEndpoint, service: Service, store: Store) -> None:
    with Sampling(store, SETTINGS, service, 3) as sampling:
        sampling.ask(prompts(4), "generate")
    assert (sampling.usage["calls"], sampling.usage["completion_tokens"]) == (4, 20)
    assert Counter(request["n"] for request in fake.requests) == {3: 4}
