"""Who answers: the rows of a stage come from one model, also where another answers now and then or from now on."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from nothing_gpt.endpoint import NEWCOMERS, STRANGERS, Service
from nothing_gpt.errors import FatalError
from tests.asking import Run, texts
from tests.fake_endpoint import Answer, FakeEndpoint, Request, last, says

pytestmark = pytest.mark.usefixtures("hasty")


def first_asked(stranger: Callable[[str], bool]) -> Callable[[Request], Answer]:
    """A stranger answers the first request for each text that `stranger` names, and the right model all others."""
    seen: set[str] = set()
    lock = threading.Lock()

    def answer(request: Request) -> Answer:
        text = last(request)
        with lock:
            first = text not in seen
            seen.add(text)
        return says("x", model="gpt-2" if first and stranger(text) else "fake")

    return answer


def test_a_stranger_now_and_then_is_a_fault_that_passes(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = first_asked(lambda text: text.endswith("3"))
    run = Run(service, texts(60), concurrency=4)
    assert (len(run.replies), run.error) == (60, None)
    assert {reply.model for reply in run.replies.values()} == {"fake"}
    assert run.endpoint.meter.retries == 6


def test_a_stranger_that_answers_first_is_not_taken_for_the_model(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = first_asked(lambda text: text == "t0")
    run = Run(service, texts(20), concurrency=1)
    assert {reply.model for reply in run.replies.values()} == {"fake"}


def test_a_model_that_changes_stops_the_stage_and_keeps_its_rows(fake: FakeEndpoint, service: Service) -> None:
    turn = itertools.count()
    fake.answer = lambda request: says("x", model="fake" if next(turn) < 10 else "gpt-2")
    run = Run(service, texts(60), concurrency=1)
    assert isinstance(run.error, FatalError)
    assert "fake was answered by fake, and now by gpt-2" in str(run.error)
    assert "set judge.model to" in str(run.error)
    assert len(run.replies) == 10
    assert len(fake.requests) == 10 + STRANGERS


def test_a_model_that_changed_since_the_kept_rows_stops_the_stage(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = lambda request: says("x", model="fake-2026-05")
    run = Run(service, texts(20), concurrency=1, answered_by="fake-2026-01")
    assert isinstance(run.error, FatalError)
    assert "was answered by fake-2026-01, and now by fake-2026-05" in str(run.error)
    assert not run.replies


@pytest.mark.parametrize(
    ("asked", "name"), [("fake", "fake-2026-05-01"), ("fake", "models/fake"), ("models/fake", "fake")]
)
def test_a_dated_version_or_a_path_of_the_model_is_the_model(
    fake: FakeEndpoint, service: Service, asked: str, name: str
) -> None:
    fake.answer = lambda request: says("x", model=name)
    run = Run(replace(service, model=asked), texts(5), concurrency=1)
    assert (len(run.replies), len(fake.requests), run.error) == (5, 5, None)


def test_a_replacement_that_always_answers_is_taken_and_said(
    fake: FakeEndpoint, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = lambda request: says("x", model="gemini-3.5-flash-lite")
    run = Run(replace(service, model="gemini-2.5-flash"), texts(20), concurrency=1)
    assert (len(run.replies), run.error) == (20, None)
    assert len(fake.requests) == 20 + NEWCOMERS - 1
    assert "gemini-2.5-flash is answered by gemini-3.5-flash-lite" in capsys.readouterr().err


def test_newcomers_with_two_names_in_turn_settle_nothing(fake: FakeEndpoint, service: Service) -> None:
    turn = itertools.count()
    fake.answer = lambda request: says("x", model=("gpt-2", "gpt-3", "fake")[next(turn) % 3])
    run = Run(service, texts(5), concurrency=1)
    assert {reply.model for reply in run.replies.values()} == {"fake"}


def test_a_reply_that_names_no_model_is_a_reply(fake: FakeEndpoint, service: Service) -> None:
    fake.answer = lambda request: says("x", model="")
    assert len(Run(service, texts(5)).replies) == 5
