"""A small embedded chain on all real engines: killed twice on its way, finished, repeated, served, taken back.

One chain serves all tests of this file; the last one changes what is promoted.
"""

import json
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chain.processes import Command

pytestmark = [pytest.mark.chain, pytest.mark.timeout(900)]

# Small, and with a gate that lets it through: whether the result is good is shown by the demo, not here.
SMALL = ["--set", "prompts.limit=48", "--set", "prompts.test_limit=16", "--set", "training.save_steps=2",
         "--set", "gate.min_pairs=2", "--set", "gate.min_accuracy=0", "--set", "gate.min_margin=-10",
         "--set", "gate.min_win_rate=0"]  # fmt: skip


class Chain:
    """One data folder, and the commands run on it."""

    def __init__(self, folder: Path):
        self.data = folder / "data"
        self.store = self.data / "store"
        self._logs = folder
        self._count = 0

    def start(self, command: str, *arguments: str) -> Command:
        self._count += 1
        settings = [*SMALL] if command == "run" else []
        return Command(*command.split(), *settings, "--set", f"place.data={self.data}", *arguments,
                       log=self._logs / f"{self._count}.log")  # fmt: skip

    def finish(self, command: str, *arguments: str) -> str:
        return self.start(command, *arguments).finish()

    def report(self) -> dict[str, Any]:
        return json.loads(self.finish("report", "--json"))

    def rows(self, stage: str) -> dict[str, Any]:
        """The journal's rows by key."""
        lines = [line for file in sorted((self.store / "journal" / stage).rglob("*.jsonl"))
                 for line in file.read_text().splitlines()]  # fmt: skip
        return {row["key"]: row["row"] for row in map(json.loads, lines)}


@dataclass
class Observed:
    """What was there at each kill, and after the run that then went on to the end."""

    completions_at_kill: dict[str, Any]
    steps_at_kill: set[str]
    stages: dict[str, Any]
    completions: dict[str, Any]
    train_log: str


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def observed(chain: Chain) -> Observed:
    """The chain, killed with everything it started while it samples and while it trains, then run to its end."""
    chain.start("run").kill_everything_when(lambda: len(chain.rows("sampling")) >= 30)
    completions = chain.rows("sampling")
    training = chain.data / "work" / "train"
    chain.start("run").kill_everything_when(lambda: any(training.glob("*/_work/*/checkpoint-*/trainer_state.json")))
    steps = {path.parent.name for path in training.glob("*/_work/*/checkpoint-*/trainer_state.json")}
    output = chain.finish("run")
    return Observed(completions, steps, chain.report()["stages"], chain.rows("sampling"), output)


def test_every_stage_runs_on_real_engines_and_the_adapter_is_promoted(chain: Chain, observed: Observed) -> None:
    report = chain.report()
    assert report["promoted"]["name"] == "seinfeld"
    assert report["training"]["step0_loss"] == pytest.approx(math.log(2), abs=0.02)
    assert report["gate"]["passed"]
    assert (chain.data / "report.html").stat().st_size > 10_000


def test_completions_from_before_a_kill_are_kept_and_not_asked_for_again(observed: Observed) -> None:
    assert {key: observed.completions[key] for key in observed.completions_at_kill} == observed.completions_at_kill
    assert observed.stages["generate_pairs"]["status"] == "cached"


def test_training_goes_on_from_the_newest_checkpoint(observed: Observed) -> None:
    newest = max(observed.steps_at_kill, key=lambda name: int(name.removeprefix("checkpoint-")))
    assert f"going on from {newest}" in observed.train_log


def test_a_second_run_does_nothing_and_starts_no_server(chain: Chain, observed: Observed) -> None:
    started = time.monotonic()
    output = chain.finish("run")
    assert time.monotonic() - started < 60
    assert "vLLM" not in output
    statuses = {name: stage["status"] for name, stage in chain.report()["stages"].items()}
    assert {name for name, status in statuses.items() if status != "cached"} == {"gate", "promote"}


def test_a_dry_run_lists_all_as_cached(chain: Chain, observed: Observed) -> None:
    assert chain.finish("run", "--dry-run").count("cached") == 9


def test_an_artifact_that_was_damaged_is_made_again(chain: Chain, observed: Observed) -> None:
    pairs = next(chain.store.glob("pairs/*/train.jsonl"))
    whole = pairs.read_bytes()
    pairs.write_bytes(whole[:100])
    chain.finish("run", "--until", "pairs")
    assert pairs.read_bytes() == whole
    assert chain.report()["stages"]["pairs"]["status"] == "ran"


def test_real_prompts_of_another_kind_go_through_to_pairs(chain: Chain, observed: Observed, tmp_path: Path) -> None:
    """Prompts that the tiny model has never seen the like of: its answers are poor, but nothing breaks."""
    file = tmp_path / "prompts.jsonl"
    rain = "It rains \u00e9ver more. "
    rows = [
        [
            {"role": "system", "content": "Continue the scene. Format each line as: [CHARACTER] dialogue"},
            {"role": "user", "content": f"[ANNA] Platform {n} again.\n[BEN] {rain * n}"},
        ]
        for n in range(1, 25)
    ]
    file.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    chain.finish("run", "--prompts", str(file), "--until", "pairs")
    assert chain.report()["stages"]["pairs"]["status"] == "ran"


def test_the_promoted_adapter_is_served_until_told_to_stop(chain: Chain, observed: Observed) -> None:
    server = chain.start("serve", "--port", "0")
    deadline = time.monotonic() + 120
    while "serving seinfeld at " not in server.output:
        assert server.process.poll() is None, server.output
        assert time.monotonic() < deadline
        time.sleep(0.2)
    url = server.output.partition("serving seinfeld at ")[2].partition(";")[0]
    question = {"model": "seinfeld", "messages": [{"role": "user", "content": "[OTIS] A tuba."}], "max_tokens": 8}
    assert httpx.post(f"{url}/chat/completions", json=question, timeout=60).json()["choices"]
    server.process.send_signal(signal.SIGINT)
    assert server.wait(60) == 0
    assert server.alive() == []


def test_the_promoted_adapter_can_be_taken_back(chain: Chain, observed: Observed) -> None:
    assert "-> " in chain.finish("adapters list")
    assert "the starting adapter again" in chain.finish("adapters rollback")
    assert "-> " not in chain.finish("adapters list")
