"""What becomes of the rows where the endpoint misbehaves: each is finished as if nothing had been, or set aside.

    python -m benchmarks.faults

Generation and judging run against 30 % of faults of every kind in `mischief.py`, an outage of 6 seconds and one of 2
minutes, and one row that always fails. `wrong` counts finished rows that differ from those of an undisturbed run,
`lost` rows that are neither finished nor set aside with a reason. Requests are given up after 2 seconds, so that
timeouts take no 5 minutes; all other waits are as they ship.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.endpoint import Pace
from benchmarks.measure import Run, StageName, artifact_folder, input_folder, run, run_stage, serving
from benchmarks.mischief import Mischief

TIMEOUT_S = 2
POISONED = "Apartment prompt 7."
"""In the text of one prompt and of no other."""
PACE = {"generation": Pace(latency=0.1, slots=32, jitter=0.8), "judging": Pace(latency=0.1, slots=16, jitter=0.8)}

Rows = Mapping[str, Any]
"""What each row came to, by its prompt."""


def finished_rows(folder: Path) -> Rows:
    """The artifact's finished rows: completions, or what each vote says."""
    if (folder / "completions.jsonl").exists():
        return {_prompt(row): row["completions"] for row in _read(folder / "completions.jsonl")}
    return {
        _prompt(row): [[vote["order"], vote["best"], vote["worst"]] for vote in row["votes"]]
        for row in _read(folder / "judged.jsonl")
        if not row.get("failed")
    }


def reasons(folder: Path) -> Mapping[str, str]:
    """Why each other row was set aside."""
    file = folder / "set_aside.jsonl"
    if file.exists():
        return {_prompt(row): row["reason"] for row in _read(file)}
    return {_prompt(row): row["failed"] for row in _read(folder / "judged.jsonl") if row.get("failed")}


def outcome(whole: Rows, folder: Path | None) -> dict[str, Any]:
    """What became of the rows of an undisturbed run in a disturbed one; without a folder all are lost."""
    found, aside = (finished_rows(folder), reasons(folder)) if folder else ({}, {})
    return {
        "rows": len(whole),
        "finished": len(found),
        "set_aside": len(aside),
        "lost": sum(prompt not in found and not aside.get(prompt) for prompt in whole),
        "wrong": sum(prompt in whole and whole[prompt] != row for prompt, row in found.items()),
        "reasons": dict(Counter(aside.values())),
    }


def undisturbed(stage: StageName, rows: int) -> Rows:
    pace = PACE[stage]
    with input_folder(stage, rows, completions=3) as folder, serving(pace) as bench:
        return finished_rows(artifact_folder(folder, run_stage(stage, folder, bench.url, pace.slots)))


def disturbed(stage: StageName, rows: int, whole: Rows, mischief: Mischief) -> dict[str, Any]:
    pace = PACE[stage]
    with input_folder(stage, rows, completions=3) as folder, serving(pace, mischief) as bench:
        done = run("benchmarks.stage", stage, folder, bench.url, "--slots", pace.slots, "--timeout", TIMEOUT_S)
        served = bench.stats()
        made = artifact_folder(folder, done) if done.code == 0 else None
        return {
            **outcome(whole, made),
            **_ending(done),
            "wall_s": round(done.wall_s, 1),
            "requests": served["requests"],
            "faults": served["faults"],
        }


def _ending(done: Run) -> dict[str, Any]:
    last = done.errors.strip().splitlines()[-1:]
    return {"code": done.code, "traceback": "Traceback" in done.errors} | ({"error": last} if done.code else {})


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _prompt(row: Mapping[str, Any]) -> str:
    return json.dumps(row["prompt"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs generation and judging against endpoints that misbehave.")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--faults", type=float, default=0.3, help="share of the requests answered by a fault")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--only", default="", help="one scenario: faults, outage-6, outage-120 or bad-row")
    given = parser.parse_args()
    scenarios = {
        "faults": Mischief(faults=given.faults, fault_seed=given.seed),
        "outage-6": Mischief(outage_after=given.prompts // 3, outage_s=6),
        "outage-120": Mischief(outage_after=given.prompts // 3, outage_s=120),
        "bad-row": Mischief(poison=POISONED),
    }
    stages: tuple[StageName, StageName] = "generation", "judging"
    result: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor() as together:
        whole = dict(zip(stages, together.map(lambda stage: undisturbed(stage, given.prompts), stages), strict=True))
        for name, mischief in scenarios.items():
            if given.only in ("", name):
                outcomes = together.map(lambda s: disturbed(s, given.prompts, whole[s], mischief), stages)  # noqa: B023
                result[name] = dict(zip(stages, outcomes, strict=True))
                print(json.dumps({name: result[name]}, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
