"""Prefect tasks, one file a stage: a few lines around one library call.

The store is the only cache: a task asks the library, which answers from the store or does the work, and shows what was
there as `Completed(name="Cached")`. Prefect's own result cache would hide a deleted artifact.
"""

import logging
from collections.abc import Callable
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from nothing_gpt.artifacts import Artifact
from nothing_gpt.errors import NothingGPTError, TransientError

RETRIES = 3


def stage(name: str) -> Callable[[Callable[..., Any]], Task[..., Any]]:
    """A Prefect task for a stage: tried again on transient errors only, shown as Cached where nothing was done."""

    def decorate(function: Callable[..., Any]) -> Task[..., Any]:
        @task(
            name=name,
            task_run_name=name,
            description=function.__doc__,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=RETRIES,
            retry_delay_seconds=exponential_backoff(backoff_factor=5),
            retry_jitter_factor=0.5,
            retry_condition_fn=_may_pass,
        )
        def run(*arguments: Any) -> Any:
            result = function(*arguments)
            if isinstance(result, Artifact) and result.reused:
                return Completed(name="Cached", message="It was in the store.", data=result)
            return result

        return run

    return decorate


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
