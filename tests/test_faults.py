"""Where an endpoint misbehaves, a row is finished as if nothing had been, or set aside: by a seed, without long waits.

`python -m benchmarks.faults` is the same at full length. What each fault means is tested in `test_endpoint.py`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.endpoint import MODEL, Pace
from benchmarks.faults import POISONED, finished_rows, outcome
from benchmarks.material import write_completions, write_prompts
from benchmarks.measure import StageName, serving
from benchmarks.mischief import Mischief
from nothing_gpt import endpoint as client
from nothing_gpt.artifacts import Stage, Workshop
from nothing_gpt.config import JudgeSettings, SamplingSettings
from nothing_gpt.dpo.generate_pairs import generate_pairs
from nothing_gpt.dpo.judge import judge
from nothing_gpt.endpoint import Service
from nothing_gpt.store import open_store

ROWS = 40
PACE = Pace(latency=0.01, jitter=0.8)

Outcome = Callable[[StageName, Mischief], dict[str, Any]]
both_stages = pytest.mark.parametrize("stage", ["generation", "judging"])


@pytest.fixture
def disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Runs a stage undisturbed and with mischief, and tells what became of its rows."""
    # Longer than an answer takes, so that hardly any row fails twice while others are answered. No test rests on it.
    monkeypatch.setattr(client, "_backoff", lambda attempt: 0.05)
    monkeypatch.setattr(client, "TIMEOUT_S", 2.0)

    def made(stage: StageName, name: str, mischief: Mischief) -> Path:
        workshop = Workshop(open_store(str(tmp_path / name)), tmp_path / f"{name}-work")
        with serving(PACE, mischief) as bench:
            service = Service(lambda: bench.url, MODEL, identity="adapter-1")
            if stage == "generation":
                write_prompts(file := tmp_path / "prompts.jsonl", ROWS)
                source = workshop.adopt(Stage("prompts", 0), {file.name: file})
                result = generate_pairs(workshop, source, SamplingSettings(), service)
            else:
                write_completions(file := tmp_path / "completions.jsonl", ROWS, 3)
                source = workshop.adopt(Stage("generate_pairs", 0), {file.name: file})
                result = judge(workshop, source, JudgeSettings(), service)
            return workshop.folder(result)

    def compared(stage: StageName, mischief: Mischief) -> dict[str, Any]:
        return outcome(finished_rows(made(stage, "undisturbed", Mischief())), made(stage, "disturbed", mischief))

    return compared


@both_stages
@pytest.mark.parametrize("seed", [1, 2])
def test_where_a_third_of_the_calls_fail_in_all_ways_no_row_is_lost_or_wrong(
    disturbed: Outcome, stage: StageName, seed: int
) -> None:
    became = disturbed(stage, Mischief(faults=0.3, fault_seed=seed))
    assert (became["rows"], became["lost"], became["wrong"]) == (ROWS, 0, 0)
    assert became["finished"] >= ROWS - 1  # one may fail eight times in a row; more would stop the stage


@both_stages
def test_an_outage_is_ridden_out(disturbed: Outcome, stage: StageName) -> None:
    became = disturbed(stage, Mischief(outage_after=10, outage_s=1.0))
    assert (became["finished"], became["wrong"]) == (ROWS, 0)


@both_stages
def test_a_row_that_always_fails_is_set_aside_alone_with_its_reason(
    disturbed: Outcome, stage: StageName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "OUTAGE_S", 1.0)
    became = disturbed(stage, Mischief(poison=POISONED))
    assert (became["finished"], became["set_aside"], became["wrong"]) == (ROWS - 1, 1, 0)
    assert all("500 poison on purpose" in reason for reason in became["reasons"])
