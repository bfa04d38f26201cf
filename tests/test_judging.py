"""Asking judges: every vote once, in its order, from every model; each reply is kept, and what fails fails alone."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt import verdicts
from nothing_gpt.config import JudgeSettings, Price
from nothing_gpt.embedded.judge import MODEL, OfflineJudge
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError
from nothing_gpt.judging import RUBRIC, Judging
from nothing_gpt.records import CompletionSet
from nothing_gpt.store import FolderStore, Store
from nothing_gpt.verdicts import Ranking, consensus
from tests.conftest import Start
from tests.fake_endpoint import Answer, FakeEndpoint, Request, fails, says
from tests.judges import asked_again, document, judged, nobody, prefers, scene, shown, usage, verdict_text
from tests.samples import completion_set, prompt

pytestmark = pytest.mark.usefixtures("hasty")


def sets(count: int) -> list[CompletionSet]:
    return [completion_set(f"scene {number}") for number in range(count)]


@pytest.fixture(autouse=True)
def wise(fake: FakeEndpoint) -> None:
    fake.answer = prefers("one", "two")


def test_a_set_is_shown_in_an_order_and_in_its_reverse(fake: FakeEndpoint, service: Service, store: Store) -> None:
    (one,) = judged(store, service, [completion_set()])
    first, second = map(shown, fake.requests)
    assert first == second[::-1]
    assert sorted(first) == ["one", "three", "two"]
    assert consensus(one.votes) == Ranking(0, 1)
    assert [[one.item.completions[i] for i in vote.order] for vote in one.votes] in ([first, second], [second, first])


def test_a_vote_keeps_what_an_audit_asks_for(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = prefers("one", "two", finish_reason="eos", prompt_tokens=1010, completion_tokens=150)
    (one,) = judged(store, service, [completion_set()], votes=1)
    (vote,) = one.votes
    assert (vote.reason, vote.model, vote.finish_reason) == ("r", "fake", "eos")
    assert (vote.prompt_tokens, vote.completion_tokens) == (1010, 150)


def test_a_judge_that_likes_a_place_disagrees_with_itself(fake: FakeEndpoint, service: Service, store: Store) -> None:
    fake.answer = lambda request: says(verdict_text(1, 3))
    (one,) = judged(store, service, [completion_set()])
    assert consensus(one.votes) == "votes disagree"


@pytest.mark.parametrize(("votes", "calls"), [(1, 1), (2, 2), (3, 4)])
def test_each_vote_costs_a_call(fake: FakeEndpoint, service: Service, store: Store, votes: int, calls: int) -> None:
    (one,) = judged(store, service, [completion_set()], votes=votes)
    assert len(fake.requests) == len(one.votes) == calls


def test_the_judge_sees_the_conversation_and_the_rubric(fake: FakeEndpoint, service: Service, store: Store) -> None:
    judged(store, service, [completion_set("the scene")])
    for request in fake.requests:
        assert request["messages"][0] == {"role": "system", "content": RUBRIC.read_text(encoding="utf-8")}
        assert document(request)["conversation"] == prompt("the scene").messages


def test_a_vote_is_not_asked_for_twice(fake: FakeEndpoint, service: Service, store: Store) -> None:
    first = judged(store, service, sets(5))
    assert judged(store, replace(service, connect=nobody), sets(5)) == first
    assert len(fake.requests) == 10


def test_more_votes_keep_the_first(fake: FakeEndpoint, service: Service, store: Store) -> None:
    for votes in (1, 2, 3):
        judged(store, service, [completion_set()], votes=votes)
    assert len(fake.requests) == 4


def test_a_set_that_is_there_twice_is_asked_about_once(fake: FakeEndpoint, service: Service, store: Store) -> None:
    first, second = judged(store, service, [completion_set(), completion_set()])
    assert first == second
    assert len(fake.requests) == 2


def test_a_set_without_a_choice_is_not_asked_about(fake: FakeEndpoint, service: Service, store: Store) -> None:
    (one,) = judged(store, replace(service, connect=nobody), [completion_set(completions=["same", "same"])])
    assert one.failed == "fewer than two distinct completions"


class Lazy(Sequence[CompletionSet]):
    """Sets that count how many were drawn since they were last gone through."""

    drawn = 0

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: Any) -> Any:
        return completion_set(f"scene {index}")

    def __iter__(self) -> Iterator[CompletionSet]:
        self.drawn = 0
        for number in range(50):
            self.drawn += 1
            yield completion_set(f"scene {number}")


def test_no_more_sets_are_read_than_are_asked_about(fake: FakeEndpoint, service: Service, store: Store) -> None:
    lazy, drawn, wise = Lazy(), list[int](), fake.answer

    def answer(request: Request) -> Answer:
        drawn.append(lazy.drawn)
        return wise(request)

    fake.answer = answer
    with Judging(store, JudgeSettings(votes=1, concurrency=1), service) as judging:
        judging.ask(lazy, "judge")
    assert len(drawn) == 50
    assert all(ahead <= number + 2 for number, ahead in enumerate(drawn))


def test_another_judge_is_asked_anew(fake: FakeEndpoint, service: Service, store: Store) -> None:
    judged(store, service, [completion_set()])
    judged(store, replace(service, identity="judge-2"), [completion_set()])
    assert len(fake.requests) == 4


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        ({"concurrency": 1, "val_ratio": 0.5, "max_failed_share": 0.5}, 0),
        ({"temperature": 0.0}, 2),
        ({"max_tokens": 100}, 2),
    ],
)
def test_only_what_changes_a_reply_asks_for_it_anew(
    fake: FakeEndpoint, service: Service, store: Store, change: dict[str, Any], calls: int
) -> None:
    judged(store, service, [completion_set()])
    judged(store, service, [completion_set()], **change)
    assert len(fake.requests) == 2 + calls


def test_a_rubric_of_ones_own_is_shown_and_a_new_one_asks_anew(
    fake: FakeEndpoint, service: Service, store: Store, tmp_path: Path
) -> None:
    mine = tmp_path / "rubric.txt"
    for text in ("The shortest is best.", "The shortest is best.", "The longest is best."):
        mine.write_text(text)
        judged(store, service, [completion_set()], rubric=str(mine))
    assert [request["messages"][0]["content"] for request in fake.requests] == [
        *["The shortest is best."] * 2,
        *["The longest is best."] * 2,
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot read the rubric"), (b" \n", "the rubric is empty"), (b"\xff", "not text in UTF-8")],
)
def test_a_rubric_that_says_nothing_is_one_clear_line(
    service: Service, store: Store, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    mine = tmp_path / "rubric.txt"
    if content is not None:
        mine.write_bytes(content)
    with pytest.raises(FatalError, match=f"^[^\n]*rubric.txt: [^\n]*{problem}[^\n]*$"):
        Judging(store, JudgeSettings(rubric=str(mine)), service)


def test_a_panel_votes_in_the_same_orders_and_the_majority_decides(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    wise, other = prefers("one", "two"), prefers("three", "two")
    fake.answer = lambda request: (other if request["model"] == "loner" else wise)(request)
    (one,) = judged(store, service, [completion_set()], panel=["second", "loner"])
    assert [vote.model for vote in one.votes] == ["fake", "fake", "second", "second", "loner", "loner"]
    assert len({vote.order for vote in one.votes}) == 2
    assert consensus(one.votes) == Ranking(0, 1)


def test_a_model_that_joins_the_panel_is_asked_alone(fake: FakeEndpoint, service: Service, store: Store) -> None:
    judged(store, service, sets(3), panel=["second"])
    before = len(fake.requests)
    judged(store, service, sets(3), panel=["third", "second", "third", "fake"])
    assert Counter(request["model"] for request in fake.requests[before:]) == {"third": 6}


def test_usage_is_told_in_sum_and_by_model_with_what_was_kept(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    price = Price(input=1e6, output=0)
    judged(store, service, sets(3))
    told = usage(store, service, sets(4), panel=["second"], prices={"fake": price, "second": price})
    assert (told["calls"], told["kept"], told["prompt_tokens"], told["cost_usd"]) == (2 + 8, 6, 160, 160.0)
    assert (told["models"]["fake"]["calls"], told["models"]["fake"]["kept"]) == (2, 6)
    assert told["models"]["second"]["calls"] == 8
    assert usage(store, service, sets(4), panel=["second"], prices={"fake": price})["cost_usd"] is None


def test_what_one_model_of_a_panel_cost_the_next_cannot_spend(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    prices = {name: Price(input=0, output=1e6) for name in ("fake", "second")}  # 16 USD reserved a call, 5 paid
    with pytest.raises(FatalError, match=r"max_cost_usd: 60\.0 would be exceeded"):
        judged(store, service, sets(4), panel=["second"], prices=prices, max_tokens=16, max_cost_usd=60, concurrency=1)
    assert Counter(request["model"] for request in fake.requests)["fake"] == 8
    assert len(fake.requests) * 5 <= 60


def test_what_all_models_of_a_panel_cost_before_counts_before_the_first_is_asked(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    prices = {name: Price(input=0, output=1e6) for name in ("fake", "second")}  # 16 USD reserved a call, 5 paid
    settings: dict[str, Any] = {"panel": ["second"], "prices": prices, "max_tokens": 16, "concurrency": 1}
    judged(store, service, sets(5), **settings)
    with pytest.raises(FatalError, match=r"max_cost_usd: 121\.0 would be exceeded"):
        judged(store, service, sets(20), max_cost_usd=121, **settings)
    assert 100 < len(fake.requests) * 5 <= 121


def test_the_price_of_every_model_of_a_panel_is_asked_for_before_any_is(service: Service, store: Store) -> None:
    prices = {"fake": Price(input=1, output=1)}
    with pytest.raises(FatalError, match=r"no price is known for second; add it to judge\.prices"):
        judged(store, replace(service, connect=nobody), sets(3), panel=["second"], prices=prices, max_cost_usd=100)


def test_a_model_whose_votes_are_all_kept_needs_no_price(fake: FakeEndpoint, service: Service, store: Store) -> None:
    first = judged(store, service, sets(3))
    assert judged(store, replace(service, connect=nobody), sets(3), max_cost_usd=1) == first


def test_a_repeat_is_asked_in_the_first_order_and_is_no_vote(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    results = judged(store, service, sets(100), repeat_share=0.1, concurrency=64)
    repeated = [one for one in results if one.repeats]
    assert 3 <= len(repeated) <= 20
    assert len(fake.requests) == 200 + len(repeated)
    for one in repeated:
        assert [vote.order for vote in one.repeats] == [one.votes[0].order]
        assert len(one.votes) == 2


def test_a_set_without_its_repeat_is_whole(fake: FakeEndpoint, service: Service, store: Store) -> None:
    once, again = sets(30), {"repeat_share": 0.1}
    judged(store, service, once)
    fake.answer = lambda request: fails(400, "no more")
    results = judged(store, service, once, **again)
    assert len(fake.requests) > 60
    assert all(one.failed is None and len(one.votes) == 2 and not one.repeats for one in results)


def test_a_reply_that_is_no_verdict_is_asked_for_again_with_the_error_shown(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    wise = fake.answer
    fake.answer = lambda request: wise(request) if asked_again(request) else says(verdict_text(1, 1))
    (one,) = judged(store, service, [completion_set()], votes=1)
    first, second = fake.requests
    assert second["messages"][:2] == first["messages"]
    assert second["messages"][2] == {"role": "assistant", "content": verdict_text(1, 1)}
    assert "two different numbers from 1 to 3" in second["messages"][3]["content"]
    assert len(one.votes) == 1


def test_a_reply_that_was_cut_is_asked_for_once_more_with_twice_the_tokens_and_both_are_kept(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    wise = fake.answer
    fake.answer = lambda request: says("", finish_reason="length") if request["max_tokens"] == 100 else wise(request)
    told = usage(store, service, [completion_set()], votes=1, max_tokens=100)
    assert [request["max_tokens"] for request in fake.requests] == [100, 200]
    assert fake.requests[0]["messages"] == fake.requests[1]["messages"]
    kept = usage(store, replace(service, connect=nobody), [completion_set()], votes=1, max_tokens=100)
    assert (told["calls"], kept["kept"], kept["prompt_tokens"]) == (2, 2, told["prompt_tokens"])


@pytest.mark.parametrize(
    ("answer", "calls", "reason"),
    [
        (says("I cannot judge this"), 2, "no usable verdict, asked twice: the reply holds no JSON object"),
        (says("", finish_reason="length"), 2, "the verdict was cut at twice judge.max_tokens; raise it"),
        (says("", finish_reason="content_filter"), 1, "the provider's content filter withheld the verdict"),
        (fails(400, "maximum context length is 2048"), 1, "400 maximum context length is 2048"),
    ],
)
def test_a_set_that_cannot_be_judged_fails_alone_with_the_votes_it_has(
    fake: FakeEndpoint, service: Service, store: Store, answer: Answer, calls: int, reason: str
) -> None:
    wise = fake.answer
    fake.answer = lambda request: answer if shown(request)[0] == "dull" else wise(request)
    bad, good = judged(store, service, [completion_set("a", ["one", "two", "dull"]), completion_set("b")], votes=3)
    assert bad.failed == reason
    assert (len(bad.votes), len(good.votes), good.failed) == (4 - dull_first(bad.item), 4, None)
    assert len(fake.requests) == 8 + (calls - 1) * dull_first(bad.item)


def dull_first(item: CompletionSet) -> int:
    return sum(item.completions[order[0]] == "dull" for order in verdicts.orders(item, 3, JudgeSettings().seed))


def test_what_was_given_up_is_asked_for_anew_by_the_next_run(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    wise = fake.answer
    fake.answer = lambda request: says("hm")
    assert judged(store, service, [completion_set()], votes=1)[0].failed
    fake.answer = wise
    (mended,) = judged(store, service, [completion_set()], votes=1)
    assert mended.failed is None
    assert not asked_again(fake.requests[-1])
    assert len(fake.requests) == 3


def test_a_mended_parser_reads_what_is_kept_without_a_call(
    fake: FakeEndpoint, service: Service, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(verdicts, "_first_object", lambda text: None)
        assert all(one.failed for one in judged(store, service, sets(3)))
    results = judged(store, replace(service, connect=nobody), sets(3))
    assert [consensus(one.votes) for one in results] == [Ranking(0, 1)] * 3


def test_a_stage_fails_past_its_share_of_sets_that_failed(fake: FakeEndpoint, service: Service, store: Store) -> None:
    wise = fake.answer
    fake.answer = lambda request: says("no") if scene(request) in ("scene 1", "scene 2") else wise(request)
    assert [bool(one.failed) for one in judged(store, service, sets(2), max_failed_share=0)] == [False, True]
    with pytest.raises(FatalError, match=r"judge: 2 of 4 rows failed \(judge.max_failed_share is 0.25\); the first: "):
        judged(store, service, sets(4), max_failed_share=0.25)


def test_an_endpoint_that_refuses_the_schema_is_asked_without_it(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    wise = fake.answer
    fake.answer = lambda request: (
        fails(400, "response_format json_schema is not supported") if "response_format" in request else wise(request)
    )
    results = judged(store, service, sets(40), concurrency=8)
    assert not any(one.failed for one in results)
    refused = sum("response_format" in request for request in fake.requests)
    assert 1 <= refused <= 9  # at most those that were in flight before the first answer without it
    assert len(fake.requests) == 80 + refused


def test_a_schema_is_sent_in_which_the_reason_comes_first(fake: FakeEndpoint, service: Service, store: Store) -> None:
    judged(store, service, [completion_set()], votes=1)
    schema = fake.requests[0]["response_format"]["json_schema"]["schema"]
    assert list(schema["properties"]) == schema["required"] == ["reason", "best", "worst", "tie"]


@pytest.mark.parametrize(("temperature", "sent"), [(None, {}), (0.0, {"temperature": 0.0})])
def test_a_temperature_is_sent_only_where_it_is_set(
    fake: FakeEndpoint, service: Service, store: Store, temperature: float | None, sent: dict[str, float]
) -> None:
    judged(store, service, [completion_set()], votes=1, temperature=temperature)
    assert {key: value for key, value in fake.requests[0].items() if key == "temperature"} == sent


def test_a_spending_limit_stops_the_stage_and_a_higher_one_goes_on(
    fake: FakeEndpoint, service: Service, store: Store
) -> None:
    prices = {"fake": Price(input=0.0, output=1e6)}  # 16 USD reserved a call, 5 paid
    with pytest.raises(FatalError, match="raise the limit and run again"):
        judged(store, service, sets(10), max_tokens=16, prices=prices, max_cost_usd=50, concurrency=2)
    bought = len(fake.requests)
    assert 3 <= bought <= 10
    judged(store, service, sets(10), max_tokens=16, prices=prices, max_cost_usd=500)
    assert len(fake.requests) == 20


def test_the_offline_judge_understands_the_question(store: Store) -> None:
    texts = ["[GEORGE] No!", "not a script at all", "[GEORGE] No! [JERRY]"]
    with OfflineJudge() as offline:
        results = judged(store, Service(lambda: offline.url, MODEL, MODEL), [completion_set(completions=texts)])
    assert [len(one.votes) for one in results] == [2]
    assert all("offline rules" in vote.reason for vote in results[0].votes)


ASK = """
    import sys
    from nothing_gpt.endpoint import Service
    from nothing_gpt.store import open_store
    from tests.judges import judged
    from tests.samples import completion_set

    url, folder = sys.argv[1:]
    sets = [completion_set(f"scene {number}") for number in range(12)]
    judged(open_store(folder), Service(lambda: url, "fake", "adapter-1"), sets, votes=1, concurrency=4)
"""


def test_a_judging_that_was_killed_asks_again_only_for_what_was_in_flight(
    fake: FakeEndpoint, service: Service, store: Store, child: Start
) -> None:
    assert isinstance(store, FolderStore)
    wise, dead = fake.answer, threading.Event()
    slow = {f"scene {number}" for number in range(6, 12)}

    def answer(request: Request) -> Answer:
        if scene(request) in slow:
            dead.wait(60)
        return wise(request)

    fake.answer = answer
    process = child(ASK, fake.url, store.root)
    while sum(len(file.read_bytes().splitlines()) for file in store.root.glob("journal/judging/*/*.jsonl")) < 6:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.wait()
    dead.set()
    results = judged(store, service, [completion_set(f"scene {number}") for number in range(12)], votes=1)
    asked = Counter(map(scene, fake.requests))
    assert not any(one.failed for one in results)
    assert {name: count for name, count in asked.items() if name not in slow} == {f"scene {n}": 1 for n in range(6)}
    assert all(1 <= asked[name] <= 2 for name in slow)
