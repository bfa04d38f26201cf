"""A run that is killed at any moment: the next one finds its batches, and nothing is paid for twice."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from nothing_gpt import batch_api
from nothing_gpt.store import Store
from tests.batches.stand import Killed, Stand, echoes, killed, texts
from tests.conftest import Start
from tests.fake_batches import FakeBatches
from tests.fake_endpoint import fails, last, says

COUNT = 5
MOMENTS = [
    "GET /batches",
    "POST /files",
    "store",
    "POST /batches",
    "store",
    *["GET /batches/ID"] * 3,
    *["GET /files/ID/content"] * 2,
    *["handle"] * COUNT,
    "store",
]
"""What an undisturbed run does, in this order: the first answers are read twice, once for the model's usual name."""


class Trace:
    """Notes the moments of a run, and kills it before or after the nth."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stand: Stand):
        self.moments: list[str] = []
        self.kill_at: int | None = None
        self.kill_after = False
        send = batch_api.openai.OpenAI.request
        write, handle = stand.store.write, stand.handle

        def request(client: Any, cast_to: Any, options: Any, **others: Any) -> Any:
            path = options.url.split("/")
            path[2:3] = ["ID"] if path[2:] else []
            name = f"{options.method.upper()} {'/'.join(path)}"
            return self.at(name, lambda: send(client, cast_to, options, **others))

        monkeypatch.setattr(batch_api.openai.OpenAI, "request", request)
        monkeypatch.setattr(stand.store, "write", lambda key, data: self.at("store", lambda: write(key, data)))
        stand.handle = lambda text, outcome: self.at("handle", lambda: handle(text, outcome))

    def at(self, moment: str, act: Callable[[], Any]) -> Any:
        self.moments.append(moment)
        here = len(self.moments) - 1 == self.kill_at
        if here and not self.kill_after:
            raise Killed
        result = act()
        if here:
            raise Killed
        return result


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> Trace:
    return Trace(monkeypatch, stand)


def test_a_run_has_these_moments(stand: Stand, trace: Trace) -> None:
    stand.run(texts(COUNT))
    assert trace.moments == MOMENTS


@pytest.mark.parametrize("forgets", [False, True], ids=["all kept", "last ones lost"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("moment", range(len(MOMENTS)), ids=[f"{n} {name}" for n, name in enumerate(MOMENTS)])
def test_a_run_killed_at_any_moment_is_gone_on_with_and_pays_for_nothing_twice(
    stand: Stand, provider: FakeBatches, trace: Trace, moment: int, after: bool, forgets: bool
) -> None:
    trace.kill_at, trace.kill_after = moment, after
    with killed():
        stand.run(texts(COUNT))
    trace.kill_at = None
    if forgets:  # a journal that had not yet been written to the disk
        stand.replies.clear()
    stand.run(texts(COUNT))
    assert stand.said() == echoes(COUNT)
    assert provider.submitted == dict.fromkeys(texts(COUNT), 1)


@pytest.mark.parametrize("moment", range(len(MOMENTS) - 1))
def test_a_run_killed_three_times_is_gone_on_with_and_pays_for_nothing_twice(
    stand: Stand, provider: FakeBatches, trace: Trace, moment: int
) -> None:
    for _ in range(3):
        trace.kill_at = len(trace.moments) + moment
        with suppress(Killed):  # a later run may have less to do than that
            stand.run(texts(COUNT))
    trace.kill_at = None
    stand.run(texts(COUNT))
    assert stand.said() == echoes(COUNT)
    assert provider.submitted == dict.fromkeys(texts(COUNT), 1)


def test_a_kill_between_two_attempts_asks_again_only_for_what_was_not_answered(
    stand: Stand, provider: FakeBatches, trace: Trace
) -> None:
    provider.fate = lambda request, batch: fails(500) if (last(request), batch) == ("t1", 0) else says("fine")
    trace.kill_at, trace.kill_after = len(MOMENTS), True  # the ticket is written, the next attempt is not
    with killed():
        stand.run(texts(COUNT))
    trace.kill_at = None
    stand.run(texts(COUNT))
    assert sorted(stand.replies) == texts(COUNT)
    assert provider.submitted == dict.fromkeys(texts(COUNT), 1) | {"t1": 2}


def test_a_batch_is_found_among_many_others(stand: Stand, provider: FakeBatches, trace: Trace) -> None:
    trace.kill_at, trace.kill_after = MOMENTS.index("POST /batches"), True
    with killed():
        stand.run(texts(COUNT))
    mine = provider.batches.pop("batch_0")
    others = [mine | {"id": f"other_{n}", "metadata": {"nothing_gpt": f"o{n}"} if n % 2 else None} for n in range(7)]
    provider.batches = {batch["id"]: batch for batch in [*others[:2], mine, *others[2:]]}
    trace.kill_at = None
    stand.run(texts(COUNT))
    assert provider.steps.count("POST /batches") == 1
    assert stand.said() == echoes(COUNT)


def test_a_batch_that_is_listed_late_is_waited_for(stand: Stand, provider: FakeBatches, trace: Trace) -> None:
    trace.kill_at, trace.kill_after = MOMENTS.index("POST /batches"), True
    with killed():
        stand.run(texts(COUNT))
    hidden = dict(provider.batches)
    provider.batches.clear()
    stand.sleep = lambda seconds: provider.batches.update(hidden)
    trace.kill_at = None
    stand.run(texts(COUNT))
    assert stand.said() == echoes(COUNT)
    assert provider.submitted == dict.fromkeys(texts(COUNT), 1)


def test_an_interrupt_leaves_the_batch_running_and_says_so(
    stand: Stand, provider: FakeBatches, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    stand.sleep = interrupt
    with pytest.raises(KeyboardInterrupt):
        stand.run(texts(COUNT))
    assert "what was submitted goes on; the next run collects it" in capsys.readouterr().err
    stand.sleep = stand.slept.append
    stand.run(texts(COUNT))
    assert stand.said() == echoes(COUNT)
    assert provider.submitted == dict.fromkeys(texts(COUNT), 1)


CHILD = """
    import sys
    from nothing_gpt import batches
    from nothing_gpt.config import EndpointSettings
    from nothing_gpt.endpoint import Service
    from nothing_gpt.replies import Meter
    from nothing_gpt.store import open_store
    from tests.batches.stand import FOLDER, body, texts

    url, uri, count = sys.argv[1:]
    service = Service(lambda: url, "fake", "judge-1")
    requests = [(text, body(text)) for text in texts(int(count))]
    batches.ask_in_batches(
        service, EndpointSettings(), "judge", open_store(uri), FOLDER, requests, lambda *_: None, "judging",
        meter=Meter(), sleep=lambda seconds: None,
    )
"""


@pytest.mark.parametrize("step", ["POST /batches", "GET /batches/ID", "GET /files/ID/content"])
def test_a_process_killed_by_sigkill_loses_and_repeats_nothing(
    stand: Stand, provider: FakeBatches, store: Store, child: Start, step: str
) -> None:
    def kill(now: str) -> None:
        if now == step and process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)

    provider.after = kill
    process = child(CHILD, provider.url, store.uri, COUNT)
    assert process.wait(timeout=120) == -signal.SIGKILL
    provider.after = lambda now: None
    stand.run(texts(COUNT))
    assert stand.said() == echoes(COUNT)
    assert provider.submitted == dict.fromkeys(texts(COUNT), 1)
