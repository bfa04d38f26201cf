"""What a worker is given, and what is said where it lacks something."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import cloudpickle
import pytest
from prefect.futures import PrefectFuture, PrefectTaskRunFuture
from prefect.states import exception_to_crashed_state
from pydantic import SecretStr

from nothing_gpt.artifacts import Artifact
from nothing_gpt.config import PlaceSettings, SamplingSettings, ScaleSettings, Settings
from nothing_gpt.dpo.generate_pairs import generate_shard
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.processes import free_port
from nothing_gpt.shards import Shard, Spread, shards
from nothing_gpt.version import code_digest
from tasks import shards as module
from tasks.place import LocalPlace
from tasks.secrets import SECRETS
from tasks.shards import SERVE_KEY, Order, Recipe, shard, spread

ROWS = 3000
all_of: Any = module._all
GIVEN = Artifact("store", "prompts", "0" * 16, "digest")


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that Prefect's server need not be asked for its blocks."""
    for name in SECRETS:
        monkeypatch.setenv(name, "sesame-open")


def spread_on(
    scale: ScaleSettings,
    data: Path = Path("data"),
    concurrency: int = 32,
    widest: int = 1,
    kind: Literal["local", "gke"] = "local",
    url: str = "http://there/v1",
) -> Spread | None:
    place = LocalPlace(Settings(place=PlaceSettings(kind=kind, data=str(data)), scale=scale))
    service = Service(lambda: url, "fake", "adapter-1", SecretStr("sesame-open"))
    settings = SamplingSettings(concurrency=concurrency, max_cost_usd=3, prices={})
    return spread(place, "generate", generate_shard, GIVEN, settings, service, SERVE_KEY, widest)


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """What would be fulfilled."""
    given: list[Order] = []

    def remember(runner: Any, orders: Sequence[Order], workers: int, label: str) -> list[Any]:
        given.extend(orders)
        return []

    monkeypatch.setattr(module, "_all", remember)
    return given


def test_one_worker_spreads_nothing() -> None:
    assert spread_on(ScaleSettings()) is None


def test_a_window_too_small_for_two_requests_is_not_divided() -> None:
    assert spread_on(ScaleSettings(workers=4), concurrency=5, widest=3) is None
    assert spread_on(ScaleSettings(workers=4), concurrency=6, widest=3) is not None


def test_workers_divide_the_window_and_what_may_be_spent(orders: list[Order]) -> None:
    run = spread_on(ScaleSettings(workers=8))
    assert run
    run(shards(ROWS))  # three: more workers than shards would leave places empty
    assert [order.settings.concurrency for order in orders] == [10, 10, 10]
    assert sum(order.settings.max_cost_usd for order in orders) == pytest.approx(3)
    assert [len(order.shard) for order in orders] == [1024, 1024, 952]


def test_what_a_worker_is_given_holds_no_secret_and_no_closure(orders: list[Order], tmp_path: Path) -> None:
    run = spread_on(ScaleSettings(workers=2), tmp_path)
    assert run
    run(shards(ROWS))
    sent = cloudpickle.dumps(orders)
    assert b"sesame" not in sent
    assert len(sent) < 20_000
    assert cloudpickle.loads(sent) == orders
    service = orders[0].recipe.service()
    assert service.open() == (["http://there/v1"], "sesame-open")


@pytest.mark.parametrize(("kind", "data"), [("local", str(Path("data").absolute())), ("gke", "data")])
def test_a_store_has_one_path_and_copies_lie_where_each_worker_likes(
    orders: list[Order], kind: Literal["local", "gke"], data: str
) -> None:
    run = spread_on(ScaleSettings(workers=2), kind=kind)
    assert run
    run(shards(ROWS))
    assert {order.place.data for order in orders} == {data}


def test_a_key_within_an_address_goes_nowhere(orders: list[Order]) -> None:
    run = spread_on(ScaleSettings(workers=2), url="http://user:sesame@there/v1")
    assert run
    with pytest.raises(FatalError, match="give its user and password as a key") as refused:
        run(shards(ROWS))
    assert "sesame" not in str(refused.value)
    assert not orders


def test_a_worker_without_the_key_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVE_KEY)
    with pytest.raises(FatalError, match="SERVE_API_KEY: not set on the worker"):
        Recipe("http://there/v1", "fake", "adapter-1", SERVE_KEY, None).service()


def test_a_worker_that_sees_another_store_says_so(tmp_path: Path) -> None:
    recipe = Recipe("http://there/v1", "fake", "adapter-1", None, None)
    place = PlaceSettings(kind="local", data=str(tmp_path / "elsewhere"))
    order = Order(generate_shard, place, GIVEN, SamplingSettings(), recipe, Shard(0, 0, 1024, ROWS), code_digest())
    with pytest.raises(FatalError, match="not there on the worker"):
        shard.fn(order)
    with pytest.raises(FatalError, match="has other code"):
        shard.fn(replace(order, code="another"))


@pytest.mark.parametrize("port", [free_port(), 99999])
def test_a_cluster_that_is_not_there_is_said_at_once(port: int) -> None:
    pytest.importorskip("prefect_ray")
    address = f"127.0.0.1:{port}"
    run = spread_on(ScaleSettings(runner="ray", address=address, workers=2))
    assert run
    with pytest.raises(FatalError, match=f"scale.address: no Ray cluster at {address}"):
        run(shards(ROWS))


def test_a_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    run = spread_on(ScaleSettings(runner="ray", workers=2))
    assert run
    with pytest.raises(FatalError, match=r"needs the package prefect_ray; `pip install -e '.\[ray\]'` in a checkout"):
        run(shards(ROWS))


class Ended(PrefectTaskRunFuture[Any]):
    """A task's, of which only its state is known."""

    def __init__(self, error: Exception):
        super().__init__(uuid4())
        self._error = error

    def wait(self, timeout: float | None = None) -> None:
        self._final_state = asyncio.run(exception_to_crashed_state(self._error))

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        raise AssertionError

    def add_done_callback(self, fn: Callable[[PrefectFuture[Any]], None]) -> None:
        fn(self)


class NotCalled(Exception):
    """As Ray tells of a task that a worker could not call."""

    cause = RuntimeError("System error: No module named 'tasks'\ntraceback: Traceback (most recent call last):")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (Exception("The worker died\nunexpectedly."), TransientError, r"its worker was lost \(.*died unexpectedly"),
        (
            NotCalled("At 0x1"),
            FatalError,
            r"a worker cannot begin it \(.*No module named 'tasks'\); each machine .* its extra ray",
        ),
    ],
)
def test_a_worker_that_dies_may_be_tried_again_and_one_that_lacks_something_is_told(
    orders: list[Order], error: Exception, kind: type[Exception], said: str
) -> None:
    run = spread_on(ScaleSettings(workers=2))
    assert run
    run(shards(ROWS))

    class Runner:
        def submit(self, *_: Any) -> Ended:
            return Ended(error)

    with pytest.raises(kind, match=f"generate, shard 0: {said}"):
        all_of(Runner(), orders, 1, "generate")
