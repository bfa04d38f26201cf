"""Kills generation and judging at random moments, runs them again, and compares with a run that nothing disturbed.

    python -m benchmarks.kill --rounds 20

`lost`, `duplicated` and `torn` count rows of the journal and of the finished files, `different` finished files that are
not byte for byte the undisturbed ones. `repeated` counts the sequences that were asked for again; `beyond` those of
them that were neither in flight nor answered in the last second before the kill.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.endpoint import Pace
from benchmarks.measure import StageName, artifact_folder, input_folder, pace_of, run_stage, serving, start

LAST_S = 1.0
"""Answers of so many seconds before a kill may be asked for again."""
FINISHING_S = 0.3
"""What a stage takes after its last answer."""

Call = tuple[list[str], float, float | None]


@dataclass(frozen=True)
class Damage:
    """What a kill did."""

    kills: int = 0
    lost: int = 0
    duplicated: int = 0
    torn: int = 0
    different: int = 0
    repeated: int = 0
    beyond: int = 0

    def __add__(self, other: "Damage") -> "Damage":
        return Damage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Damage)))


def repetitions(calls: Iterable[Call], killed: float) -> tuple[int, int]:
    """(sequences asked for again after the kill, those of them that should have been kept by then)."""
    before: set[str] = set()
    kept: set[str] = set()
    again: list[str] = []
    for sequences, arrived, answered in calls:
        if arrived > killed:
            again += [sequence for sequence in sequences if sequence in before]
            continue
        before.update(sequences)
        if answered is not None and answered < killed - LAST_S:
            kept.update(sequences)
    return len(again), sum(sequence in kept for sequence in again)


def journal(folder: Path) -> tuple[dict[str, set[str]], int]:
    """(the rows of each key, the lines that are no rows) of all segments in a store. A kill while segments are merged
    leaves copies, which are one row."""
    rows: dict[str, set[str]] = {}
    torn = 0
    for segment in sorted((folder / "store" / "journal").rglob("*.jsonl")):
        if segment.name.startswith("."):  # a temporary file: it was never an object of the store
            continue
        for line in segment.read_bytes().splitlines(keepends=True):
            try:
                row = json.loads(line)
                rows.setdefault(f"{segment.parent.name}/{row['key']}", set()).add(json.dumps(row["row"]))
            except (ValueError, KeyError, TypeError):
                torn += 1
            else:
                torn += not line.endswith(b"\n")
    return rows, torn


def compared(whole: dict[str, bytes], again: dict[str, bytes]) -> Damage:
    """The finished files of a run that was killed, against those of one that was not."""
    lost = duplicated = 0
    for name, data in whole.items():
        expected, found = Counter(data.splitlines()), Counter(again.get(name, b"").splitlines())
        lost += (expected - found).total()
        duplicated += sum(count - 1 for line, count in found.items() if count > expected[line])
    return Damage(lost=lost, duplicated=duplicated, different=sum(again.get(name) != whole[name] for name in whole))


def files(folder: Path) -> dict[str, bytes]:
    """An artifact's files but for the manifest, which holds times."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "manifest.json"}


def kill_once(stage: StageName, rows: int, pace: Pace, after: float, whole: dict[str, bytes]) -> Damage:
    """One round: killed so many seconds after its first request, then run to its end."""
    with input_folder(stage, rows, completions=3) as folder, serving(pace) as bench:
        process = start("benchmarks.stage", stage, folder, bench.url, "--slots", pace.slots)
        while process.poll() is None and not bench.stats()["requests"]:
            time.sleep(0.02)
        with suppress(subprocess.TimeoutExpired):
            process.wait(after)
        ended_before = process.poll() is not None
        killed = time.monotonic()
        process.kill()
        process.communicate()
        flushed, torn = journal(folder)
        again = run_stage(stage, folder, bench.url, pace.slots)
        kept, torn_later = journal(folder)
        repeated, beyond = repetitions(bench.calls(), killed)
        damage = compared(whole, files(artifact_folder(folder, again)))
    return damage + Damage(
        kills=not ended_before,
        lost=sum(not versions <= kept.get(key, set()) for key, versions in flushed.items()),
        duplicated=sum(len(versions) > 1 for versions in kept.values()),
        torn=torn + torn_later,
        repeated=repeated,
        beyond=beyond,
    )


def measured(stage: StageName, rounds: int, rows: int, pace: Pace, rng: random.Random) -> Damage:
    """So many kills, at moments spread evenly from the first request to a little after the last answer, when segments
    are merged and the artifact is published."""
    with input_folder(stage, rows, completions=3) as folder, serving(pace) as bench:
        undisturbed = run_stage(stage, folder, bench.url, pace.slots)
        whole = files(artifact_folder(folder, undisturbed))
        serve_s = bench.stats()["serve_s"]
    total = Damage()
    while total.kills < rounds:
        after = rng.uniform(0, serve_s + FINISHING_S)
        damage = kill_once(stage, rows, pace, after, whole)
        print(f"{stage}, killed after {after:.2f} s: {damage}", file=sys.stderr)
        total += damage
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description="Kills generation and judging, and looks for what was lost.")
    parser.add_argument("--rounds", type=int, default=20, help="kills of each of the two stages")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--jitter", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0, help="of the latencies and of the moments")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    stages: tuple[StageName, StageName] = "generation", "judging"
    by_stage = {stage: measured(stage, given.rounds, given.prompts, pace_of(given), rng) for stage in stages}
    total = by_stage["generation"] + by_stage["judging"]
    print(json.dumps(asdict(total) | {stage: asdict(damage) for stage, damage in by_stage.items()}))


if __name__ == "__main__":
    main()
