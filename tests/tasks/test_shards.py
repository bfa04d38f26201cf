"""What a worker is given, and what is said where it lacks something."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from pydantic import SecretStr

from nothing_gpt.artifacts import Artifact
from nothing_gpt.config import PlaceSettings, SamplingSettings, ScaleSettings, Settings
from nothing_gpt.dpo.generate_pairs import generate_shard
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError
from nothing_gpt.processes import free_port
from nothing_gpt.shards import Shard, Spread, shards
from tasks import shards as module
from tasks.place import LocalPlace
from tasks.secrets import SECRETS
from tasks.shards import SERVE_KEY, Order, Recipe, shard, spread

ROWS = 3000
GIVEN = Artifact("store", "prompts", "0" * 16, "digest")


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that Prefect's server need not be asked for its blocks."""
    for name in SECRETS:
        monkeypatch.setenv(name, "sesame-open")


def spread_on(scale: ScaleSettings, data: Path = Path("data"), concurrency: int = 32, widest: int = 1) -> Spread | None:
    place = LocalPlace(Settings(place=PlaceSettings(kind="local", data=str(data)), scale=scale))
    service = Service(lambda: "http://there/v1", "fake", "adapter-1", SecretStr("sesame-open"))
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


def test_a_worker_without_the_key_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVE_KEY)
    with pytest.raises(FatalError, match="SERVE_API_KEY: not set on the worker"):
        Recipe("http://there/v1", "fake", "adapter-1", SERVE_KEY, None).service()


def test_a_worker_that_sees_another_store_says_so(tmp_path: Path) -> None:
    recipe = Recipe("http://there/v1", "fake", "adapter-1", None, None)
    place = PlaceSettings(kind="local", data=str(tmp_path / "elsewhere"))
    order = Order(generate_shard, place, GIVEN, SamplingSettings(), recipe, Shard(0, 0, 1024, ROWS))
    with pytest.raises(FatalError, match="not there on the worker"):
        shard.fn(order)


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    pytest.importorskip("prefect_ray")
    address = f"127.0.0.1:{free_port()}"
    run = spread_on(ScaleSettings(runner="ray", address=address, workers=2))
    assert run
    with pytest.raises(FatalError, match=f"scale.address: no Ray cluster at {address}"):
        run(shards(ROWS))


def test_a_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    run = spread_on(ScaleSettings(runner="ray", workers=2))
    assert run
    with pytest.raises(FatalError, match=r"pip install 'nothing-gpt\[ray\]'"):
        run(shards(ROWS))
