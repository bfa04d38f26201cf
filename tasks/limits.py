"""A rate that all workers keep together: one of Prefect's global concurrency limits, with a slot decay."""

from collections.abc import Awaitable, Callable

import httpx
from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.asyncio import rate_limit

from nothing_gpt.errors import FatalError, TransientError


def no_answer(error: ConcurrencySlotAcquisitionError) -> bool:
    """Whether it was Prefect's server that failed, of which Prefect says the same as of a limit that is not there."""
    cause = error.__cause__
    return isinstance(cause, httpx.TransportError) or (
        isinstance(cause, httpx.HTTPStatusError) and cause.response.is_server_error
    )


def permit(limit: str) -> Callable[[], Awaitable[None]]:
    """Waits for a slot of the limit, from whichever machine. It raises FatalError where there is none of that name
    with a slot decay, and TransientError where Prefect's server does not answer."""

    async def wait() -> None:
        try:
            await rate_limit(limit, strict=True)
        except ConcurrencySlotAcquisitionError as error:
            if no_answer(error):
                raise TransientError(f"Prefect's server does not answer ({error.__cause__!r})") from None
            raise FatalError(
                f"scale.judge_limit: {error}; make it with `prefect gcl create {limit} --limit CALLS "
                "--slot-decay-per-second CALLS_A_SECOND`, or mend the one that is there with `update` for `create`"
            ) from None

    return wait
