"""A rate that all workers keep together: one of Prefect's global concurrency limits, with a slot decay."""

from collections.abc import Awaitable, Callable

import httpx
from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.asyncio import rate_limit

from nothing_gpt.errors import FatalError, TransientError


def permit(limit: str) -> Callable[[], Awaitable[None]]:
    """Waits for a slot of the limit, from whichever machine. It raises FatalError where there is no such limit, and
    TransientError where Prefect's server does not answer."""

    async def wait() -> None:
        try:
            await rate_limit(limit, strict=True)
        except ConcurrencySlotAcquisitionError as error:
            raise FatalError(
                f"scale.judge_limit: {error}; make it with `prefect gcl create {limit} --limit CALLS "
                "--slot-decay-per-second CALLS_A_SECOND`"
            ) from None
        except httpx.TransportError as error:
            raise TransientError(f"scale.judge_limit: Prefect's server does not answer ({error})") from None

    return wait
