"""Prefect tasks, one file a stage: a few lines around one library call.

The store is the only cache: a task asks the library, which answers from the store or does the work, and shows what was
there as `Completed(name="Cached")`. Prefect's own result cache would hide a deleted artifact.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import httpx
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.context import TaskRunContext
from prefect.states import Completed
from prefect.tasks import exponential_backoff
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from nothing_gpt.artifacts import Artifact
from nothing_gpt.errors import FatalError, NothingGPTError, TransientError
from tasks.limits import no_answer
from tasks.shown import progress_shown, show_result

RETRIES = 3
LEASE_SECONDS = 60
"""A slot whose holder died is free again after so long."""
AWAY_SECONDS = 300
"""How long a server that does not answer is waited for."""


def stage(
    name: str, uses: Sequence[str] = (), numbers: Callable[..., str] | None = None
) -> Callable[[Callable[..., Any]], Task[..., Any]]:
    """A Prefect task for a stage: tried again on transient errors only, shown as Cached where nothing was done.

    It waits for a slot of each concurrency limit it `uses`. `numbers`, called with its arguments, follow its name.
    """

    def title(parameters: dict[str, Any]) -> str:
        return f"{name} · {numbers(*parameters['arguments'])}" if numbers else name

    named: Any = title  # of the two kinds of function that Prefect takes, its types know one

    def decorate(function: Callable[..., Any]) -> Task[..., Any]:
        @task(
            name=name,
            task_run_name=named,
            description=function.__doc__,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=RETRIES,
            retry_delay_seconds=exponential_backoff(backoff_factor=5),
            retry_jitter_factor=0.5,
            retry_condition_fn=_may_pass,
        )
        def run(*arguments: Any) -> Any:
            if TaskRunContext.get() is None:  # a plan looks what there is, without a server
                result = function(*arguments)
            else:
                with _slots(uses), progress_shown():
                    result = function(*arguments)
                show_result(arguments[0].workshop, name, result)
            if isinstance(result, Artifact) and result.reused:
                return Completed(name="Cached", message="It was there already.", data=result)
            return result

        return run

    return decorate


@contextmanager
def _slots(names: Sequence[str]) -> Iterator[None]:
    """Holds a slot of each limit, all or none. A limit that is not there is an error: `flows.provision` makes them.

    A server that is away is waited for where a slot is wanted. Work goes on where a slot is lost meanwhile, and a slot
    that cannot be given back is free when its lease runs out: it bounds the load, and the store's leases see to it that
    nothing is done twice.
    """
    if not names:
        yield
        return

    def take() -> AbstractContextManager[None]:
        slots = concurrency([*names], strict=True, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False)
        slots.__enter__()
        return slots

    away = retry_if_exception(lambda error: isinstance(error, ConcurrencySlotAcquisitionError) and no_answer(error))
    try:
        slots = Retrying(retry=away, wait=wait_fixed(1), stop=stop_after_delay(AWAY_SECONDS), reraise=True)(take)
    except ConcurrencySlotAcquisitionError as error:
        if no_answer(error):
            why = f"{error.__cause__!r}"
            raise TransientError(f"Prefect's server does not answer ({why}); start it and press Retry") from None
        raise FatalError(f"{error}; run `python -m flows.provision`, which makes them") from None
    try:
        yield
    finally:
        with suppress(httpx.TransportError):
            slots.__exit__(None, None, None)


def _may_pass(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, TransientError)


class OneLine(logging.Filter):
    """Takes the traceback off errors a user can cause: their message says it all."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], NothingGPTError):
            record.exc_info = None
        return True


for _logger in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_logger).addFilter(OneLine())
