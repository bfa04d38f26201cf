"""Sampling: only what is missing is asked for, and the same replies make the same completions."""

import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from nothing_gpt.config import Price, SamplingSettings
from nothing_gpt.endpoint import AHEAD, Service
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.records import CompletionSet, Prompt, canonical_json
from nothing_gpt.sampling import Sampling, SetAside, whole_lines
from nothing_gpt.store import Store, open_store
from tests.fake_endpoint import Answer, FakeEndpoint, Request, fails, last, says, serving
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
        *[left.pop(0) if len(left) > 1 else left[0] for _ in range(request.get("n", 1))], finish_reason=finish_reason
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
    fake.script = [says("a", "b", "c")] * 6
    fake.answer = lambda request: fails(401)
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


def test_an_endpoint_that_gives_fewer_choices_than_asked_is_asked_for_the_rest_one_by_one(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = lambda request: says(*[f"sample {i} {request['seed']}" for i in range(min(request.get("n", 1), 2))])
    first, second = sample(store, service, prompts(2), count=4, settings=SamplingSettings(concurrency=1))
    assert [request.get("n", 1) for request in fake.requests] == [1] * 8
    fake.requests.clear()
    first, second = sample(store, service, prompts(2), count=8, settings=SamplingSettings(concurrency=4))
    assert sorted(request.get("n", 1) for request in fake.requests) == [1, 1, 1, 1, 4, 4]
    assert len(completions(first)) == len(completions(second)) == 8


@pytest.mark.parametrize(
    "refusal",
    [
        fails(400, "n must be 1 when using greedy sampling, got 3."),
        fails(422, "Unsupported value: 'n' does not support 3 with this model."),
        fails(400, "Multiple candidates is not enabled for this model"),
        fails(400, "Only one completion choice is allowed"),
        says("the only one"),
    ],
)
def test_an_endpoint_that_gives_one_choice_a_request_is_asked_one_by_one_for_the_rest_of_the_run(
    fake: FakeEndpoint, service: Service, store: Store, refusal: Answer
) -> None:
    plain = fake.answer
    fake.answer = lambda request: refusal if "n" in request else plain(request)
    settings = SamplingSettings(concurrency=3)
    results = sample(store, service, prompts(20), settings=settings)
    assert all(len(completions(result)) == 3 for result in results)
    # One or two are under way when the first answer comes; all others know.
    assert 1 <= sum("n" in request for request in fake.requests) <= 2
    seeds = [request["seed"] for request in fake.requests if "n" not in request]
    assert len(seeds) == len(set(seeds))


def test_a_refusal_that_has_nothing_to_do_with_n_is_not_asked_again_one_by_one(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = lambda request: fails(400, "maximum context length is 2048 tokens, however you requested 2304")
    (result,) = sample(store, service, [prompt()])
    assert isinstance(result, SetAside)
    assert [request["n"] for request in fake.requests] == [3]


def test_an_endpoint_that_gives_more_choices_than_asked_is_not_believed(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = lambda request: says(*"abcdefg")
    assert completions(sample(store, service, [prompt()])[0]) == ["a", "b", "c"]


def test_completions_that_are_the_same_are_one(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = cycling("a", "b", " a \n")
    assert completions(sample(store, service, [prompt()])[0]) == ["a", "b"]


def test_a_completion_that_came_whole_and_cut_alike_is_whole(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    cut = says("a\nhalf", "b\nhalf", finish_reason="length")
    fake.answer = lambda request: cut if "n" in request else says("a")
    (result,) = sample(store, service, [prompt()])
    assert isinstance(result, CompletionSet)
    assert dict(zip(result.completions, result.truncated, strict=True)) == {"a": False, "b": True}


def test_a_prompt_that_is_always_answered_alike_is_degenerate(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = cycling("same")
    (result,) = sample(store, service, [prompt()])
    assert isinstance(result, SetAside)
    assert (result.degenerate, result.reason, result.attempts) == (True, "1 distinct completions", 3)
    assert [request["n"] for request in fake.requests] == [3, 2, 2]


def test_more_are_asked_for_where_too_few_differ(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = cycling("same", "same", "same", "same", "other")
    assert completions(sample(store, service, [prompt()])[0]) == ["same", "other"]
    assert [request["n"] for request in fake.requests] == [3, 2]


def test_more_are_asked_for_in_place_of_empty_ones(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = cycling("a", "", " \n", "b", "c")
    assert completions(sample(store, service, [prompt()])[0]) == ["a", "b", "c"]


def test_a_prompt_answered_with_nothing_is_set_aside(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = lambda request: says("")
    (result,) = sample(store, service, [prompt()], count=1, distinct=1)
    assert isinstance(result, SetAside)
    assert result.degenerate
    assert len(fake.requests) == 3


def test_what_the_providers_filter_withheld_counts_as_no_text_and_is_said(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = lambda request: says(*["half a sentence"] * request["n"], finish_reason="content_filter")
    (result,) = sample(store, service, [prompt()])
    assert isinstance(result, SetAside)
    assert result.reason == "0 distinct completions, 9 withheld by the provider's filter"


def test_the_line_filter_keeps_what_the_characters_say_and_costs_no_call(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = lambda request: says(
        "[JERRY] one\n\n(He sits.)\n  [THE MAN] two", "Sure! Here it is:\n[ELAINE] three", "[KRAMER]\n[]no\n[ANNA] x"
    )
    assert "(He sits.)" in completions(sample(store, service, [prompt()])[0])[0]
    filtered = SamplingSettings(line_filter=True)
    (result,) = sample(store, replace(service, connect=nobody), [prompt()], settings=filtered)
    assert completions(result) == ["[JERRY] one\n[THE MAN] two", "[ELAINE] three", "[ANNA] x"]


def test_a_completion_without_a_characters_line_counts_as_empty(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = cycling("[JERRY] one", "Certainly.", "[ELAINE] two", "[GEORGE] three")
    (result,) = sample(store, service, [prompt()], settings=SamplingSettings(line_filter=True))
    assert completions(result) == ["[JERRY] one", "[ELAINE] two", "[GEORGE] three"]


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


def test_a_refused_prompt_is_set_aside_with_its_reason_and_asked_again_by_the_next_run(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = lambda request: fails(400, "context too long") if last(request) == "scene 1" else says("a", "b", "c")
    results = sample(store, service, prompts(3))
    assert [type(result) for result in results] == [CompletionSet, SetAside, CompletionSet]
    assert results[1] == SetAside(prompts(3)[1], "400 context too long", degenerate=False, status=400, attempts=1)
    fake.requests.clear()
    fake.answer = lambda request: says("a", "b", "c")
    assert isinstance(sample(store, service, prompts(3))[1], CompletionSet)
    assert [last(request) for request in fake.requests] == ["scene 1"]


@pytest.mark.usefixtures("last_rows_given_up")
def test_one_prompt_that_no_try_brings_is_set_aside_alone(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = lambda request: fails(500, "boom") if last(request) == "scene 7" else says("a", "b", "c")
    results = sample(store, service, prompts(12), settings=SamplingSettings(max_failed_share=0))
    (aside,) = (result for result in results if isinstance(result, SetAside))
    assert aside.prompt == prompts(12)[7]
    assert "500 boom" in aside.reason
    assert aside.attempts > 1


def test_a_stage_fails_past_its_share_of_failures_and_keeps_what_it_has(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    bad = ("scene 8", "scene 9")
    fake.answer = lambda request: fails(400, "no") if last(request) in bad else says("a", "b", "c")
    with pytest.raises(FatalError, match=r"generate: 2 of 10 rows failed \(sampling.max_failed_share is 0.1\).*400 no"):
        sample(store, service, prompts(10), settings=SamplingSettings(max_failed_share=0.1, concurrency=3))
    fake.requests.clear()
    sample(store, service, prompts(10), settings=SamplingSettings(max_failed_share=0.2))
    assert sorted(map(last, fake.requests)) == ["scene 8", "scene 9"]


def test_a_stage_stops_asking_once_too_many_have_failed(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = lambda request: fails(400, "no")
    with pytest.raises(FatalError, match="of 1000 rows failed"):
        sample(store, service, prompts(1000), settings=SamplingSettings(concurrency=8))
    assert len(fake.requests) < 100


@pytest.mark.usefixtures("short_outages")
def test_an_endpoint_that_goes_away_is_transient_and_what_it_said_is_kept(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.script = [says("a", "b", "c")] * 4
    fake.answer = lambda request: fails(503)
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
    fake.answer = lambda request: says(*["same"] * request.get("n", 1), seconds=0.01)
    sample(store, service, prompts(4), count=3, settings=settings)
    sample(store, service, prompts(4), count=8, settings=settings)
    assert fake.most_in_flight <= math.ceil(AHEAD * concurrency)
    assert sum(request.get("n", 1) for request in fake.requests) == 4 * (8 + 7 + 7)


def test_what_was_used_counts_the_whole_stage_over_all_its_runs(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    settings = SamplingSettings(prices={"fake": Price(input=1, output=100_000)})

    def used(count: int, samples: int = 3) -> dict[str, Any]:
        with Sampling(store, settings, service, samples) as sampling:
            sampling.ask(prompts(count), "generate")
        return {name: sampling.usage[name] for name in ("calls", "kept", "completion_tokens", "cost_usd")}

    assert used(4) == {"calls": 4, "kept": 0, "completion_tokens": 20, "cost_usd": pytest.approx(2.00004)}
    assert used(6) == {"calls": 2, "kept": 4, "completion_tokens": 30, "cost_usd": pytest.approx(3.00006)}
    assert used(6) == {"calls": 0, "kept": 6, "completion_tokens": 30, "cost_usd": pytest.approx(3.00006)}
    assert used(1, samples=5)["calls"] == 1
    assert used(1)["kept"] == 1


def test_the_spending_limit_counts_what_earlier_runs_spent(fake: FakeEndpoint, service: Service, store: Store) -> None:
    prices = {"fake": Price(input=0, output=1_000_000 / 5)}  # a reply has 5 tokens: 1 USD
    sample(store, service, prompts(4))
    limited = SamplingSettings(prices=prices, max_cost_usd=4.5, max_tokens=256)
    with pytest.raises(FatalError, match=r"sampling.max_cost_usd: 4.5 would be exceeded after 4 calls"):
        sample(store, service, prompts(5), settings=limited)
    assert len(fake.requests) == 4


def test_another_model_that_answers_after_a_resume_stops_the_stage(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = lambda request: says("a", "b", "c", model="fake-2026-01")
    sample(store, service, prompts(2))
    fake.answer = lambda request: says("a", "b", "c", model="fake-2026-02")
    with pytest.raises(FatalError, match="was answered by fake-2026-01, and now by fake-2026-02"):
        sample(store, service, prompts(20))


def test_the_same_adapter_under_another_name_goes_on_where_it_was(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = lambda request: says("a", "b", "c", model=request["model"])
    sample(store, service, prompts(2))
    assert len(sample(store, replace(service, model="renamed"), prompts(20))) == 20
    assert [request["model"] for request in fake.requests] == ["fake"] * 2 + ["renamed"] * 18


def test_the_same_adapter_at_another_address_is_not_asked_again(service: Service, store: Store) -> None:
    first = sample(store, service, prompts(3))
    with serving() as elsewhere:
        assert sample(store, replace(service, connect=lambda: elsewhere.url), prompts(3)) == first
        assert elsewhere.requests == []


def test_two_runs_that_want_the_same_completions_pay_once(fake: FakeEndpoint, service: Service, store: Store) -> None:
    plain = fake.answer
    fake.answer = lambda request: replace(plain(request), seconds=0.02)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: sample(store, service, prompts(30)), range(2))
    assert first == second
    assert len(fake.requests) == 30


def test_a_text_with_half_a_character_is_kept_with_a_mark_in_its_place(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    fake.answer = lambda request: says("a \ud83d", "b", "c")
    assert completions(sample(store, service, [prompt()])[0]) == ["a ?", "b", "c"]
