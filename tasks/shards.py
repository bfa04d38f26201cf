"""A stage's shards as Prefect tasks, several at once: in threads of this process or on the machines of a Ray cluster.

A shard's task gets references and settings, no closure and no secret: it opens the store itself, and takes its key from
the environment of its machine or from Prefect's Secret blocks. It returns what its calls cost; the replies are in the
journal. A shard whose machine dies is begun again by Ray on another one, and finds there what was answered.
"""

import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import SecretStr

from nothing_gpt.artifacts import Artifact, Workshop
from nothing_gpt.config import Environment, PlaceSettings, ScaleSettings
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.progress import progress
from nothing_gpt.replies import Meter
from nothing_gpt.shards import Shard, Spread, share_of
from nothing_gpt.stopping import ending_together
from nothing_gpt.version import code_digest
from nothing_gpt.workshops import IN_BUCKET, open_workshop
from tasks.credentials import place_credentials
from tasks.limits import permit
from tasks.place import Place
from tasks.secrets import secrets_from_blocks
from tasks.shown import progress_shown

SERVE_KEY, JUDGE_KEY = "SERVE_API_KEY", "OPENAI_API_KEY"
"""The variables that hold the key of the adapters' endpoint and the judge's."""

REACHED_S = 10.0
"""Seconds in which a Ray cluster takes a connection."""

Work = Callable[[Workshop, Artifact, Any, Service, Shard], Mapping[str, Meter]]
"""A stage's function for one shard, of a module: it goes to other machines by its name."""


@dataclass(frozen=True)
class Recipe:
    """How a service is reached from another machine: its addresses, the variable that holds its key, if it has one, and
    the limit that keeps its rate, if one does."""

    urls: str
    model: str
    identity: str
    key: str | None
    limit: str | None

    def service(self) -> Service:
        """Raises FatalError where this machine lacks the key."""
        secret = self._secret() if self.key else None
        return Service(lambda: self.urls, self.model, self.identity, secret, permit(self.limit) if self.limit else None)

    def _secret(self) -> SecretStr:
        environment = Environment()
        secret = environment.serve_api_key if self.key == SERVE_KEY else environment.openai_api_key
        if secret is None:
            raise FatalError(
                f"{self.key}: not set on the worker {socket.gethostname()}; set it there, or make Prefect's Secret "
                "block of its name"
            )
        return secret


@dataclass(frozen=True)
class Order:
    """What a worker is to do, in full."""

    work: Work
    place: PlaceSettings
    given: Artifact
    settings: Any
    recipe: Recipe
    shard: Shard
    code: str
    """`code_digest` of who orders: rows made by other code might be found by nobody."""


@task(name="shard", task_run_name="shard {order.shard.number}", cache_policy=NO_CACHE, persist_result=False)
def shard(order: Order) -> Mapping[str, Meter]:
    """Some of a stage's rows, on whichever machine."""
    if order.code != code_digest():
        raise FatalError(f"the worker {socket.gethostname()} has other code than this run; install the same there")
    with secrets_from_blocks(), progress_shown():
        workshop = open_workshop(order.place, place_credentials(order.place))
        if workshop.manifest(order.given.key) is None:
            raise FatalError(
                f"{workshop.store.uri}/{order.given.key}: not there on the worker {socket.gethostname()}; all workers "
                "must see one store: use place gke, or a data folder that they share"
            )
        return order.work(workshop, order.given, order.settings, order.recipe.service(), order.shard)


def spread(
    place: Place, label: str, work: Work, given: Artifact, settings: Any, service: Service, key: str, widest: int = 1
) -> Spread | None:
    """What has the stage's shards worked on, None where one worker does it all. `key` is the variable that holds the
    service's key, `widest` how many sequences one request may be for: no worker's part of the window is smaller."""
    scale = place.settings.scale
    most = min(scale.workers, settings.concurrency // widest)
    if most < 2:
        return None

    def run(due: Sequence[Shard]) -> list[Mapping[str, Meter]]:
        workers = min(most, len(due))
        limit = scale.judge_limit if service.permit else None
        urls, _ = service.open()  # which refuses a key within an address
        recipe = Recipe(",".join(urls), service.model, service.identity, key if service.api_key else None, limit)
        there, code = _from_elsewhere(place.settings.place), code_digest()
        orders = [Order(work, there, given, share_of(settings, one, workers), recipe, one, code) for one in due]
        with _running(scale, workers) as runner:
            return _all(runner, orders, workers, label)

    return run


def _from_elsewhere(place: PlaceSettings) -> PlaceSettings:
    """The place as another machine finds it: a data folder that is the store has one path everywhere, and one with
    copies from a bucket is each machine's own."""
    return place if place.kind in IN_BUCKET else place.model_copy(update={"data": str(Path(place.data).absolute())})


def _all(runner: TaskRunner[Any], orders: Sequence[Order], workers: int, label: str) -> list[Mapping[str, Meter]]:
    """Fulfils the orders, so many at once. After one that fails no other is begun, those that run are awaited, and its
    error is raised; `_crash` says which where it has none."""
    waiting, running, costs = deque(orders), {}, []
    failed: BaseException | None = None
    rows = sum(len(order.shard) for order in orders)
    with progress(f"{label}, {len(orders)} shards", rows) as advance:
        while running or (waiting and not failed):
            while waiting and not failed and len(running) < workers:
                order = waiting.popleft()
                running[runner.submit(shard, {"order": order})] = order
            future = next(as_completed([*running]))
            order = running.pop(future)
            future.wait()
            result = future.state.result(raise_on_failure=False)
            if future.state.is_completed():
                costs.append(result)
                advance(len(order.shard))
            elif future.state.is_crashed():
                failed = failed or _crash(f"{label}, shard {order.shard.number}", result)
            else:
                failed = failed or result
    if failed:
        raise failed
    return costs


def _crash(shard: str, error: object) -> FatalError | TransientError:
    """What ended a shard without a word of its own. An error of Ray's has a cause where a worker was there and could
    not call the task."""
    cause = getattr(error, "cause", None)
    why = " ".join(str(cause or error).partition("\ntraceback:")[0].split())[:300]
    if cause or "No module named" in why:
        return FatalError(
            f"{shard}: a worker cannot begin it ({why}); each machine of the cluster needs this program with its extra "
            "ray, and the way to Prefect's server"
        )
    return TransientError(f"{shard}: its worker was lost ({why}); what was answered is kept; run again")


@contextmanager
def _running(scale: ScaleSettings, workers: int) -> Iterator[TaskRunner[Any]]:
    """The task runner of the settings, at work. Raises FatalError where it is not installed or cannot be reached."""
    if scale.runner == "threads":
        with ThreadPoolTaskRunner(max_workers=workers) as runner, ending_together():
            yield runner
        return
    try:
        from prefect_ray import RayTaskRunner  # an extra
    except ModuleNotFoundError as error:
        raise FatalError(
            f"scale.runner: ray needs the package {error.name}; `pip install -e '.[ray]'` in a checkout "
            "brings it, and the worker's image has none"
        ) from None
    from ray.exceptions import RayError

    runner = RayTaskRunner(scale.address)
    try:
        if scale.address:  # Ray itself would knock for minutes
            host, _, port = scale.address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), REACHED_S).close()
        runner.__enter__()
    except (OSError, OverflowError, RuntimeError, ValueError, RayError) as error:
        where, why = scale.address or "this machine", " ".join(str(error).split())[:200]
        raise FatalError(
            f"scale.address: no Ray cluster at {where} ({why}); start it, set RAY_AUTH_MODE=token and its "
            "RAY_AUTH_TOKEN here if it asks for one, and run again"
        ) from None
    try:
        yield runner
    finally:
        runner.__exit__(None, None, None)
