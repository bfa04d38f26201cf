"""Sweeps on a real Prefect server, with fakes for the engines (see `fakes.py`): what is shared, what is compared, what
a point's failure does, and what is promoted."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State

from flows.record import last_sweep
from flows.sweep import dpo_sweep
from flows.sweep_plan import sweep_plan
from nothing_gpt.config import Settings, SweepSettings
from nothing_gpt.errors import FatalError, GateFailed
from nothing_gpt.serve.registry import read_registry
from nothing_gpt.sweeps import points_of
from tasks.place import Place
from tests.fake_endpoint import fails
from tests.flows.conftest import Call
from tests.flows.fakes import PAIRS, START, TRAINED, Engines, Trainer, engines
from tests.flows.test_dpo import eventually

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(300)]
pytest.importorskip("torch")

BETAS = [0.1, 0.05, 0.01]


class Learns(Trainer):
    """Learns more with a lower beta, but with 0.01 it writes worse than before."""

    def __init__(self) -> None:
        super().__init__(
            right=lambda training: {0.1: 20, 0.05: 39, 0.01: 30}.get(training.beta, 20),
            quality=lambda training: {0.05: TRAINED + 0.125, 0.01: START - 0.125}.get(training.beta, TRAINED),
        )


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Learns()
    monkeypatch.setattr(Place, "run", staticmethod(trainer))
    return trainer


def sweep(place: Engines, betas: Sequence[float] = BETAS, others: Mapping[str, Any] = {}, **how: bool) -> State[Any]:
    """Runs a sweep of beta and returns the state it ends in; `others` are settings by `group__key`."""
    settings = place.settings(**others)
    groups: dict[str, Any] = {name: getattr(settings, name) for name in Settings.model_fields}
    return dpo_sweep(sweep=SweepSettings(grid={"training.beta": [*betas]}), **how, **groups, return_state=True)


def points(place: Engines) -> dict[str, dict[str, Any]]:
    """The last sweep's table, by point, in its order."""
    return {row["point"]: row for row in (last_sweep(place.store) or {})["points"]}


# Of one sweep, in which nothing goes wrong.


@dataclass(frozen=True)
class Swept:
    place: Engines
    trainer: Trainer
    state: State[Any]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, prefect: None) -> Iterator[Swept]:
    with pytest.MonkeyPatch.context() as patch, engines(tmp_path_factory.mktemp("swept")) as place:
        patch.setattr(Place, "run", staticmethod(trainer := Learns()))
        yield Swept(place, trainer, sweep(place))


def test_what_points_share_is_done_once_and_the_best_stands_first(swept: Swept) -> None:
    table = points(swept.place)
    assert swept.state.is_completed()
    assert swept.state.message == "Best: training.beta=0.05"
    assert {name: row["status"] for name, row in table.items()} == {
        "training.beta=0.05": "passed", "training.beta=0.1": "passed", "training.beta=0.01": "refused"
    }  # fmt: skip
    assert next(iter(table)) == "training.beta=0.05"
    assert swept.trainer.runs == 3
    assert len([*swept.place.store.root.glob("judge/*/manifest.json")]) == 1
    assert len({row["stages"]["pairs"] for row in table.values()}) == 1


def test_points_do_not_promote(swept: Swept) -> None:
    assert read_registry(swept.place.store).versions == []
    assert swept.place.vllm.answers_like("seinfeld", swept.place.start)


def test_each_point_is_a_run_of_its_own_in_prefect(swept: Swept) -> None:
    parent = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [swept.state.state_details.flow_run_id]}})

    def look() -> dict[str, str | None]:
        with get_client(sync_client=True) as client:
            return {run.name: run.state_name for run in client.read_flow_runs(flow_run_filter=parent)}

    wanted = {"training.beta=0.1": "Completed", "training.beta=0.05": "Completed", "training.beta=0.01": "Failed"}
    assert eventually(look, lambda seen: seen == wanted) == wanted


def test_points_are_compared_with_the_best_on_the_same_pairs_and_prompts(swept: Swept) -> None:
    table = points(swept.place)
    other = table["training.beta=0.1"]
    accuracy, win_rate = other["against_best"]["accuracy"], other["against_best"]["win rate"]
    assert (accuracy["n"], accuracy["better"], accuracy["worse"]) == (PAIRS, 19, 0)
    assert (win_rate["n"], win_rate["better"], win_rate["worse"]) == (other["held_out"], 0, 0)
    assert other["differs"] is True
    worse = table["training.beta=0.01"]["against_best"]["win rate"]
    assert (worse["better"], worse["worse"]) == (worse["n"], 0)


def test_prefect_shows_one_table_and_one_plot(swept: Swept) -> None:
    run = FlowRunFilter.model_validate({"id": {"any_": [swept.state.state_details.flow_run_id]}})
    with get_client(sync_client=True) as client:
        shown = {found.key: found for found in client.read_artifacts(flow_run_filter=run) if found.key}
    assert {key: found.type for key, found in shown.items()} == {
        "sweep-report": "markdown", "sweep-points": "table", "plot-points-of-the-sweep": "image"
    }  # fmt: skip
    assert [row["point"] for row in json.loads(str(shown["sweep-points"].data))] == [*points(swept.place)]


def test_a_plan_of_what_was_swept_asks_nobody(swept: Swept) -> None:
    given = points_of(SweepSettings(grid={"training.beta": BETAS}), swept.place.settings())
    planned = sweep_plan(given)
    assert {step.planned.status for step in planned} == {"cached"}
    assert [(step.planned.stage, step.points) for step in planned][4:6] == [("pairs", [1, 2, 3]), ("train", [1])]


# Others.


def test_where_no_point_passes_the_gate_nothing_is_promoted(place: Engines, trainer: Trainer) -> None:
    state = sweep(place, others={"gate__min_win_rate": 0.99}, promote=True)
    assert isinstance(state.result(raise_on_failure=False), GateFailed)
    assert "No point passes the gate; the best is training.beta=0.05" in str(state.message)
    assert read_registry(place.store).versions == []


def test_a_point_that_fails_does_not_end_the_sweep(place: Engines, trainer: Trainer) -> None:
    trainer.errors = [FatalError("the disk is full; make room")]
    assert sweep(place).is_completed()
    table = points(place)
    assert [*table][-1] == "training.beta=0.1"
    assert table["training.beta=0.1"]["status"] == "failed"
    assert table["training.beta=0.1"]["error"] == "the disk is full; make room"
    assert table["training.beta=0.05"]["status"] == "passed"
    assert table["training.beta=0.1"]["against_best"] == {}
    sweep(place)
    assert trainer.runs == 4
    assert points(place)["training.beta=0.1"]["status"] == "passed"


def test_a_sweep_of_which_nothing_was_measured_fails_and_says_why(place: Engines, trainer: Trainer) -> None:
    place.judge.answer = lambda request: fails(401, "no such key")
    state = sweep(place)
    assert state.is_failed()
    assert "no point was measured: training.beta=0.1: " in str(state.message)


def test_with_halving_only_the_better_half_is_trained_to_the_end_and_evaluated(
    place: Engines, trainer: Trainer
) -> None:
    epochs: list[float] = []
    learns = trainer.right
    trainer.right = lambda training: epochs.append(training.num_train_epochs) or learns(training)
    state = sweep(place, [0.1, 0.05, 0.01, 0.02], {"training__num_train_epochs": 3}, halving=True)
    assert state.is_completed()
    table = points(place)
    assert {name: row["status"] for name, row in table.items()} == {
        "training.beta=0.05": "passed", "training.beta=0.01": "refused",
        "training.beta=0.1": "left out", "training.beta=0.02": "left out",
    }  # fmt: skip
    assert epochs == [1, 1, 1, 1, 3, 3]
    assert table["training.beta=0.1"]["win_rate"] is None
    assert table["training.beta=0.1"]["accuracy"] == 0.5


def test_the_program_promotes_the_winner_through_the_gate_and_shows_the_table(
    call: Call, place: Engines, trainer: Trainer, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("grid: {training.beta: [0.1, 0.05]}")
    ended = call("sweep", str(file), "--promote", *place.options())
    assert ended.code == 0, ended.err
    assert "Promoted: training.beta=0.05 is served as seinfeld, version 1" in ended.out
    assert "Points of the sweep" in (place.data / "sweep.html").read_text()
    (version,) = read_registry(place.store).versions
    assert version.artifact == points(place)["training.beta=0.05"]["stages"]["train"]
    assert place.vllm.answers_like("seinfeld", place.store.root / version.artifact)
    assert trainer.runs == 2
    assert "train/" not in call("prune", *place.options(), answer="n\n").out
