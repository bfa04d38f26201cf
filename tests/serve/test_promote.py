"""Promotion on a running server. Its one promise: whatever fails on the way, the former adapter serves
on under the stable name, and the registry says so.
"""

import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt import artifacts
from nothing_gpt.adapters import adapter_digest
from nothing_gpt.errors import FatalError, GateFailed, TransientError
from nothing_gpt.serve.promote import Candidate, promote
from nothing_gpt.serve.registry import Approval, promoted, swap
from nothing_gpt.serve.switch import versioned_name
from tests.fake_vllm import OUT
from tests.serve.stand import CONVERSATION, NAME, Stand, when_switching

pytest.importorskip("torch")

# What a promotion does.


@pytest.mark.every_store
def test_the_candidate_answers_under_the_stable_name_and_the_registry_names_it(stand: Stand) -> None:
    candidate = stand.candidate()
    version = stand.promote(candidate)
    assert stand.serves(candidate.folder)
    assert stand.registry.current_version == version
    assert (version.version, version.name, version.artifact) == (1, NAME, candidate.artifact)
    assert (version.place, version.replaces) == ("local", None)
    assert version.digest == adapter_digest(candidate.folder)
    assert (version.metrics, version.reasons) == (candidate.metrics, candidate.reasons)
    assert (version.approval, version.lineage) == (candidate.approval, candidate.lineage)


def test_it_loads_and_tries_the_candidate_under_its_own_name_before_it_touches_the_stable_one(stand: Stand) -> None:
    candidate = stand.candidate()
    own = versioned_name(NAME, adapter_digest(candidate.folder))
    seen: list[tuple[str, str, bool, int | None]] = []
    stand.vllm.before = lambda route, body: seen.append(
        (
            route.rpartition("/")[2],
            body.get("lora_name") or body["model"],
            body.get("load_inplace", False),
            stand.registry.current,
        )
    )
    stand.promote(candidate)
    assert seen == [
        ("load_lora_adapter", own, False, None),
        ("completions", own, False, None),
        ("completions", NAME, False, None),
        ("load_lora_adapter", NAME, True, None),
        ("completions", NAME, False, None),
    ]


def test_a_candidate_that_the_evaluation_has_loaded_already_is_not_loaded_again(stand: Stand) -> None:
    candidate = stand.candidate()
    stand.vllm.serve(versioned_name(NAME, adapter_digest(candidate.folder)), candidate.folder)
    stand.promote(candidate)
    assert stand.vllm.loads == [(NAME, str(candidate.folder), True)]


def test_a_server_that_serves_nothing_under_the_stable_name_yet_gets_the_candidate(stand: Stand) -> None:
    stand.vllm.unload({"lora_name": NAME})
    candidate = stand.candidate()
    stand.promote(candidate)
    assert stand.serves(candidate.folder)


def test_a_switch_that_was_killed_before_the_registry_was_written_is_finished_by_the_next_run(stand: Stand) -> None:
    candidate = stand.candidate()
    stand.vllm.serve(NAME, candidate.folder)
    stand.promote(candidate)
    assert stand.serves(candidate.folder)
    assert stand.registry.current == 1


def test_a_server_that_lost_the_current_adapter_gets_it_back_as_the_same_version(stand: Stand) -> None:
    candidate = stand.candidate()
    version = stand.promote(candidate)
    stand.vllm.serve(NAME, stand.start)
    assert stand.promote(candidate) == version
    assert stand.serves(candidate.folder)
    assert len(stand.registry.versions) == 1


def test_a_second_promotion_replaces_the_first(stand: Stand) -> None:
    first, second = stand.candidate(0.5), stand.candidate(0.75)
    stand.promote(first)
    stand.promote(second)
    assert stand.serves(second.folder)
    assert (stand.registry.current, stand.registry.versions[1].replaces) == (2, 1)


# What is refused before the server is touched.


def truncated(stand: Stand) -> Candidate:
    candidate = stand.candidate()
    weights = candidate.folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    return candidate


def missing_a_file(stand: Stand) -> Candidate:
    candidate = stand.candidate()
    (candidate.folder / "adapter_config.json").unlink()
    return candidate


def unchanged(stand: Stand) -> Candidate:
    candidate = stand.candidate()
    shutil.copytree(stand.start, candidate.folder, dirs_exist_ok=True)
    return candidate


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (truncated, "cut or damaged"),
        (missing_a_file, r"adapter_config\.json is missing"),
        (lambda stand: stand.candidate(float("nan")), "holds NaN or infinity"),
        (lambda stand: stand.candidate(float("inf")), "holds NaN or infinity"),
        (lambda stand: stand.candidate(out=OUT + 1), "made for another base model"),
        (unchanged, "the starting adapter unchanged"),
    ],
)
def test_a_candidate_that_must_not_be_served_is_refused_before_the_server_hears_of_it(
    stand: Stand, broken: Callable[[Stand], Candidate], reason: str
) -> None:
    asked: list[str] = []
    stand.vllm.before = lambda route, body: asked.append(route)
    error = stand.refused(broken(stand))
    assert isinstance(error, FatalError)
    assert re.search(reason, str(error))
    assert asked == []
    assert stand.serves(stand.start)


# What fails on the way: the former adapter serves on, whichever it was.


@pytest.fixture(params=["the starting adapter", "a promoted adapter"])
def former(request: pytest.FixtureRequest, stand: Stand) -> Path:
    """What serves before the promotion that fails."""
    if request.param == "the starting adapter":
        return stand.start
    earlier = stand.candidate(0.4)
    stand.promote(earlier)
    stand.vllm.loads.clear()
    return earlier.folder


def test_a_server_that_refuses_the_candidate_is_not_switched(stand: Stand, former: Path) -> None:
    stand.vllm.refuses = lambda name, path: (500, "vLLM cannot take this one.")
    assert "cannot take this one" in str(stand.refused(stand.candidate()))
    assert stand.serves(former)
    assert all(not in_place for *_, in_place in stand.vllm.loads)


def test_a_candidate_that_gives_no_answer_is_not_switched_to(stand: Stand, former: Path) -> None:
    candidate = stand.candidate()
    own = versioned_name(NAME, adapter_digest(candidate.folder))
    complete = stand.vllm.complete

    def mute(body: dict[str, Any]) -> dict[str, Any] | None:
        answer = complete(body)
        if answer and body["model"] == own:
            answer["choices"][0]["logprobs"] = None
        return answer

    stand.vllm.complete = mute
    assert "gives no answer to a test prompt" in str(stand.refused(candidate))
    assert stand.serves(former)


def test_a_server_that_refuses_the_switch_keeps_the_former_adapter(stand: Stand, former: Path) -> None:
    candidate = stand.candidate()
    stand.vllm.refuses = lambda name, path: (
        (500, "no room for it") if (name, path) == (NAME, str(candidate.folder)) else None
    )
    assert "no room for it" in str(stand.refused(candidate))
    assert stand.serves(former)


def test_a_server_whose_answers_do_not_change_is_switched_back(stand: Stand, former: Path) -> None:
    stand.vllm.deaf = True
    assert "does not answer as the new adapter does" in str(stand.refused(stand.candidate()))
    assert stand.serves(former)


def test_a_server_that_says_it_serves_from_elsewhere_is_switched_back(stand: Stand, former: Path) -> None:
    stand.vllm.root_of[NAME] = "/somewhere/else"
    candidate = stand.candidate()
    assert f"from /somewhere/else, not from {candidate.folder}" in str(stand.refused(candidate))
    assert stand.serves(former)


def test_a_server_that_dies_before_the_switch_leaves_the_registry_as_it_was(stand: Stand, former: Path) -> None:
    stand.vllm.before = lambda route, body: setattr(stand.vllm, "dead", True)
    assert isinstance(stand.refused(stand.candidate()), TransientError)


def test_a_server_that_dies_in_the_middle_of_the_switch_is_named_with_what_could_not_be_undone(
    stand: Stand, former: Path
) -> None:
    when_switching(stand, lambda: setattr(stand.vllm, "dead", True))
    error = stand.refused(stand.candidate())
    assert isinstance(error, TransientError)
    assert "the former adapter cannot be put back" in str(error)


def test_a_server_that_came_back_is_promoted_to_by_the_next_try(stand: Stand, former: Path) -> None:
    candidate = stand.candidate()
    when_switching(stand, lambda: setattr(stand.vllm, "dead", True))
    stand.refused(candidate)
    stand.vllm.dead = False
    stand.promote(candidate)
    assert stand.serves(candidate.folder)


def test_an_unforeseen_failure_switches_back_as_any_other(
    stand: Stand, former: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    before = stand.registry
    monkeypatch.setattr("nothing_gpt.serve.promote.swap", fail)
    with pytest.raises(KeyboardInterrupt):
        stand.promote(stand.candidate())
    assert stand.serves(former)
    assert stand.registry == before


# What was taken back.


def test_what_was_taken_back_is_promoted_again_only_where_a_person_agreed(stand: Stand) -> None:
    candidate = stand.candidate()
    stand.promote(candidate)
    stand.roll_back()
    unattended = stand.refused(replace(candidate, approval=None))
    assert isinstance(unattended, GateFailed)
    assert re.search(r"version 1, .* taken back by anna: not funny; .* adapters promote 1", str(unattended))
    assert stand.serves(stand.start)
    stand.promote(replace(candidate, approval=Approval(by="anna", reason="on second thoughts", at=3.0)))
    assert stand.serves(candidate.folder)


# Two at once.


def by_hand(stand: Stand, candidate: Candidate) -> None:
    """What another promotion does, from a machine whose lease we do not see."""
    before = stand.registry
    swap(
        stand.store,
        before,
        promoted(
            before,
            name=NAME,
            artifact=candidate.artifact,
            fingerprint=candidate.fingerprint,
            place=candidate.place,
            digest=adapter_digest(candidate.folder),
            metrics={},
            reasons=[],
        ),
    )


def test_where_another_promotion_came_first_its_adapter_serves_and_ours_is_told(stand: Stand) -> None:
    ours, other = stand.candidate(0.5), stand.candidate(0.75)
    when_switching(stand, lambda: by_hand(stand, other))
    with pytest.raises(FatalError, match=r"changed meanwhile \(version 1 now\)"):
        stand.promote(ours)
    assert stand.serves(other.folder)
    assert [version.artifact for version in stand.registry.versions] == [other.artifact]


def test_a_candidate_that_was_compared_with_another_version_is_refused(stand: Stand) -> None:
    candidate, other = stand.candidate(0.5), stand.candidate(0.75)
    stand.promote(other)
    with pytest.raises(FatalError, match=r"version 1 is current now, and .* with the starting adapter; run again"):
        stand.promote_instead_of(None, candidate)
    assert stand.serves(other.folder)
    stand.promote_instead_of(1, candidate)
    with pytest.raises(FatalError, match=r"version 2 is current now, and .* with version 1; run again"):
        stand.promote_instead_of(1, other)
    assert stand.promote_instead_of(1, candidate).version == 2  # it is what is wanted already
    assert stand.serves(candidate.folder)


class Waiting:
    """Says when a second promotion waits for the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._event = threading.Event()
        monkeypatch.setattr(artifacts, "say", lambda message: self._event.set())

    def wait(self) -> None:
        assert self._event.wait(10)


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, first, second = Waiting(monkeypatch), stand.candidate(0.5), stand.candidate(0.75)
    with ThreadPoolExecutor() as pool:
        started: list[Any] = []

        def start_the_other() -> None:
            started.append(pool.submit(stand.promote, second))
            waiting.wait()

        when_switching(stand, start_the_other)
        stand.promote(first)
        assert isinstance(started[0].exception(timeout=10), FatalError)
    assert stand.serves(first.folder)
    assert [version.artifact for version in stand.registry.versions] == [first.artifact]


def test_of_two_promotions_of_the_same_adapter_at_once_both_are_content(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, candidate = Waiting(monkeypatch), stand.candidate()
    with ThreadPoolExecutor() as pool:
        started: list[Any] = []

        def start_the_other() -> None:
            started.append(pool.submit(stand.promote, candidate))
            waiting.wait()

        when_switching(stand, start_the_other)
        version = stand.promote(candidate)
        assert started[0].result(timeout=10) == version
    assert stand.serves(candidate.folder)
    assert len(stand.registry.versions) == 1


def test_without_the_base_at_hand_the_server_alone_judges_whether_the_adapter_fits(stand: Stand) -> None:
    candidate = stand.candidate()
    promote(stand.workshop, candidate, stand.start, replace(stand.server, base=None), None, CONVERSATION)
    assert stand.serves(candidate.folder)


def test_the_servers_key_is_not_shown(stand: Stand) -> None:
    assert "secret" not in repr(replace(stand.server, api_key="secret"))
