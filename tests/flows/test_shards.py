"""The chain in shards on a real Prefect server: on threads, and on a Ray cluster of three nodes, of which one may die.

The nodes are processes of this machine, each with one CPU and so one shard at a time. The engines are fakes.
"""

import itertools
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State

from flows.dpo import dpo_pipeline
from flows.record import StageName
from nothing_gpt import shards
from nothing_gpt.config import Settings
from nothing_gpt.endpoint import AHEAD
from nothing_gpt.processes import free_port
from tests.fake_endpoint import Answer, Request, fails
from tests.flows.deployed import eventually, kept, repeated
from tests.flows.fakes import Engines, engines

pytestmark = pytest.mark.timeout(600)  # beside others Ray's processes start slowly
NODES, COMPLETIONS, CONCURRENCY = 3, 2, 12
WINDOW = int(AHEAD * (CONCURRENCY // NODES)) // COMPLETIONS
"""Requests that a worker has in flight."""


@pytest.fixture
def place(tmp_path: Path, prefect: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    """40 prompts to sample, in three shards."""
    monkeypatch.setattr(shards, "LEAST_ROWS", 14)
    with engines(tmp_path / "place") as running:
        yield running


class Cluster:
    """Three nodes of Ray, each a process with one CPU."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        # Every process that is not needed is a second of imports.
        node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False}
        head = {"include_dashboard": False, "no_monitor": True, "gcs_server_port": free_port()}
        self._cluster = Cluster(initialize_head=True, head_node_args=node | head)
        self._others = [self._cluster.add_node(**node) for _ in range(NODES - 1)]
        self.address = self._cluster.address

    def kill_one(self) -> None:
        """As a machine dies: at once."""
        self._cluster.remove_node(self._others.pop(), allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One for all tests; the last of them kills a node."""
    with (
        # No folder of pytest's: a socket's path has at most 107 characters, and Ray wants most of them.
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or it writes one into the home folder
        cluster = Cluster()
        try:
            yield cluster
        finally:
            cluster.shutdown()


def flow(place: Engines, until: StageName = "judge", **scale: Any) -> State[Any]:
    """Samples and judges, on so many workers, and returns the state it ends in."""
    given = {f"scale__{name}": value for name, value in scale.items()}
    settings = place.settings(sampling__num_completions=COMPLETIONS, sampling__concurrency=CONCURRENCY, **given)
    groups: dict[str, Any] = {name: getattr(settings, name) for name in Settings.model_fields}
    return dpo_pipeline(**groups, until=until, return_state=True)


def made(place: Engines) -> dict[str, bytes]:
    """What the two stages wrote, by its key."""
    store = place.store
    keys = [key for stage in ("generate_pairs", "judge") for key in store.list(stage) if key.endswith(".jsonl")]
    return {key: store.read(key) or b"" for key in keys}


def made_by_one_worker(folder: Path, until: StageName = "judge") -> dict[str, bytes]:
    with engines(folder) as alone:
        assert flow(alone, until).is_completed()
        return made(alone)


def shard_runs(state: State[Any]) -> int:
    """How many shards Prefect shows of a flow's run."""
    with get_client(sync_client=True) as client:
        one = FlowRunFilter.model_validate({"id": {"any_": [state.state_details.flow_run_id]}})
        return sum(run.name.startswith("shard") for run in client.read_task_runs(flow_run_filter=one))


@pytest.mark.prefect
def test_threads_make_the_same_bytes_as_one_worker(place: Engines, tmp_path: Path) -> None:
    ended = flow(place, workers=NODES)
    assert ended.is_completed()
    assert eventually(lambda: shard_runs(ended) == 2 * NODES)
    assert made(place) == made_by_one_worker(tmp_path / "alone")
    assert repeated(place) == 0


@pytest.mark.prefect
def test_ctrl_c_ends_the_shards_at_work_and_what_was_answered_is_kept(
    place: Engines, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has none
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    answers, ended = 6, threading.Event()
    turns = itertools.count()

    def wait(route: str, body: Mapping[str, Any]) -> None:
        if route.endswith("/completions") and next(turns) >= answers:
            ended.wait(20)

    def interrupt() -> None:
        eventually(lambda: kept(place) == answers)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    place.vllm.before = wait
    with ThreadPoolExecutor(1) as thread:
        interrupted = thread.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            flow(place, workers=NODES)
        assert not interrupted.exception()
    assert len(place.vllm.completions) < NODES * (WINDOW + 1) + answers  # nobody has waited for the others
    ended.set()
    assert kept(place) == answers


@pytest.mark.prefect
def test_a_shards_error_is_the_runs(place: Engines) -> None:
    place.judge.answer = lambda request: fails(401)
    ended = flow(place, workers=NODES)
    assert ended.is_failed()
    assert "the key is refused" in str(ended.result(raise_on_failure=False))


@pytest.mark.prefect
def test_the_judges_rate_is_that_of_the_limit_over_all_workers(place: Engines) -> None:
    calls, rate = 20, 25.0
    with get_client(sync_client=True) as client:
        limit = GlobalConcurrencyLimitCreate(name="judge-calls", limit=calls, slot_decay_per_second=rate)
        client.create_global_concurrency_limit(limit)
    came: list[float] = []
    answer = place.judge.answer

    def judge(request: Request) -> Answer:
        came.append(time.monotonic())
        return answer(request)

    place.judge.answer = judge
    assert flow(place, workers=NODES, judge_limit="judge-calls").is_completed()
    assert len(came) > 2 * calls
    assert max(came) - min(came) >= (len(came) - calls) / rate - 0.5


@pytest.mark.prefect
def test_a_limit_that_is_not_there_or_keeps_no_rate_is_refused_with_the_command_that_makes_it(place: Engines) -> None:
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="no-rate", limit=20))
    for name in ("no-such-limit", "no-rate"):
        ended = flow(place, judge_limit=name)
        assert ended.is_failed()
        error = str(ended.result(raise_on_failure=False))
        assert f"`prefect gcl create {name} --limit CALLS --slot-decay-per-second CALLS_A_SECOND`, or mend" in error
    assert not place.judge.requests


@pytest.mark.ray
def test_a_cluster_makes_the_same_bytes_as_one_worker(place: Engines, cluster: Cluster, tmp_path: Path) -> None:
    ended = flow(place, runner="ray", address=cluster.address, workers=NODES)
    assert ended.is_completed()
    assert eventually(lambda: shard_runs(ended) == 2 * NODES)
    assert made(place) == made_by_one_worker(tmp_path / "alone")
    assert repeated(place) == 0


@pytest.mark.ray
def test_a_node_killed_in_mid_stage_loses_nothing_and_repeats_at_most_its_window(
    place: Engines, cluster: Cluster, tmp_path: Path
) -> None:
    answers = 6
    free, turns = threading.Event(), itertools.count()
    in_flight: list[int] = []

    def wait(route: str, body: Mapping[str, Any]) -> None:
        if route.endswith("/completions") and (turn := next(turns)) >= answers and not free.is_set():
            in_flight.append(turn)
            assert free.wait(240)

    place.vllm.before = wait
    with ThreadPoolExecutor(1) as thread:
        on = {"runner": "ray", "address": cluster.address, "workers": NODES}
        run = thread.submit(copy_context().run, lambda: flow(place, "generate_pairs", **on))
        try:
            eventually(lambda: run.done() or (len(in_flight) == NODES * WINDOW and kept(place) == answers))
            assert not run.done()
            cluster.kill_one()
        finally:
            free.set()
        assert run.result().is_completed()
    assert made(place) == made_by_one_worker(tmp_path / "alone", "generate_pairs")
    assert repeated(place) <= WINDOW
