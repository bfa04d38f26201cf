"""What is said where Prefect's server does not answer: that it is so, and not that a limit is missing."""

import asyncio
from collections.abc import Iterator

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

import tasks
from nothing_gpt.errors import TransientError
from nothing_gpt.processes import free_port
from tasks.limits import permit


@pytest.fixture(autouse=True)
def away() -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        yield


def test_a_call_may_be_tried_again() -> None:
    async def call() -> None:
        await permit("judge-calls")()

    with pytest.raises(TransientError, match=r"Prefect's server does not answer \(ConnectError"):
        asyncio.run(call())


def test_a_stage_that_wants_a_slot_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AWAY_SECONDS", 0)
    with pytest.raises(TransientError, match=r"does not answer .* press Retry"), tasks._slots(["judge"]):
        pass
