"""Runs one stage against an endpoint of known pace, each in its own process, and says what it took.

`main` is the whole of `python -m benchmarks.generation` and `python -m benchmarks.judging`; the other benchmarks take
its parts. What is printed is measured; nothing is estimated.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.endpoint import Pace
from benchmarks.material import write_completions, write_prompts
from benchmarks.mischief import Mischief

REPOSITORY = Path(__file__).parent.parent
INPUTS = {"generation": "prompts.jsonl", "judging": "completions.jsonl"}

StageName = Literal["generation", "judging"]


@dataclass(frozen=True)
class Run:
    """One process that ended. `wall_s` and `cpu_s` (user and system) are of its whole life, imports included."""

    code: int
    wall_s: float
    cpu_s: float
    said: dict[str, Any]
    """The JSON of its last line; empty where there is none."""
    errors: str
    """What it wrote to stderr."""


@dataclass(frozen=True)
class Bench:
    """A running endpoint and its counts."""

    url: str

    def stats(self) -> dict[str, Any]:
        return self._get("stats")

    def calls(self) -> list[tuple[list[str], float, float | None]]:
        """(sequences, arrived, answered) of each request; times are of the machine's monotonic clock (s)."""
        return [tuple(call) for call in self._get("calls")]

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url.removesuffix("v1") + path) as answer:
            return json.load(answer)


@contextmanager
def serving(pace: Pace, mischief: Mischief | None = None) -> Iterator[Bench]:
    """An endpoint in a process of its own, until the `with` block ends."""
    options = asdict(pace) | asdict(mischief or Mischief())
    arguments = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.endpoint", *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        yield Bench(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def input_folder(stage: StageName, rows: int, completions: int) -> Iterator[Path]:
    """A folder, gone at the end, with the input of a stage."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        if stage == "generation":
            write_prompts(folder / INPUTS[stage], rows)
        else:
            write_completions(folder / INPUTS[stage], rows, completions)
        yield folder


def start(module: str, *arguments: object) -> "subprocess.Popen[str]":
    """A Python module as a process; what it says goes into pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(module: str, *arguments: object) -> Run:
    """Runs a Python module to its end."""
    before, started = os.times(), time.monotonic()
    process = start(module, *arguments)
    out, errors = process.communicate()
    wall, after = time.monotonic() - started, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    lines = out.splitlines()
    return Run(process.returncode, wall, cpu, json.loads(lines[-1]) if lines else {}, errors)


def run_stage(stage: StageName, folder: Path, url: str, slots: int, *options: object) -> Run:
    """Runs a stage on a folder's input to its end. Exits where it failed."""
    done = run("benchmarks.stage", stage, folder, url, "--slots", slots, *options)
    if done.code:
        sys.exit(f"the stage failed ({done.code}): {done.errors}")
    return done


def artifact_folder(folder: Path, done: Run) -> Path:
    """Where the artifact is that a run made."""
    return folder / "store" / done.said["key"]


def figures(done: Run, served: dict[str, Any], slots: int) -> dict[str, Any]:
    """What a run took, beside the ideal: all latencies drawn for its sequences, spread evenly over the slots."""
    ideal = served["work_s"] / slots
    return {
        "ideal_s": round(ideal, 3),
        "serve_s": round(served["serve_s"], 3),
        "over_ideal": round((served["serve_s"] - ideal) / ideal, 4) if ideal else None,
        "wall_s": round(done.wall_s, 2),
        "cpu_s": round(done.cpu_s, 2),
        "requests": served["requests"],
        "sequences": served["sequences"],
        "most_in_flight": served["most_in_flight"],
        "endpoint_cpu_s": round(served["endpoint_cpu_s"], 2),
    }


def measured(stage: StageName, rows: int, completions: int, pace: Pace) -> dict[str, Any]:
    """A stage three times: from nothing; with its artifact there; and with every row kept but the artifact gone."""
    options = "--completions", completions
    with input_folder(stage, rows, completions) as folder, serving(pace) as bench:
        first = run_stage(stage, folder, bench.url, pace.slots, *options)
        served = bench.stats()
        cached = run_stage(stage, folder, bench.url, pace.slots, *options)
        shutil.rmtree(artifact_folder(folder, first))
        restarted = run_stage(stage, folder, bench.url, pace.slots, *options)
        asked_again = bench.stats()["requests"] - served["requests"]
    if asked_again or not cached.said["reused"] or restarted.said["reused"]:
        sys.exit(f"a finished stage asked for {asked_again} rows again, or was not cached")
    return figures(first, served, pace.slots) | {
        "peak_mib": round(first.said["peak_mib"], 1),
        "cached_s": round(cached.wall_s, 2),
        "restart_s": round(restarted.wall_s, 2),
        "restart_peak_mib": round(restarted.said["peak_mib"], 1),
    }


def pace_arguments(parser: argparse.ArgumentParser, slots: int) -> None:
    parser.add_argument("--prompts", type=int, default=1021)
    parser.add_argument("--completions", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds a sequence")
    parser.add_argument("--slots", type=int, default=slots, help="sequences that the endpoint works on at once")
    parser.add_argument("--jitter", type=float, default=0.0, help="latency is drawn a request, uniform in 1 +- this")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn latencies")


def pace_of(given: argparse.Namespace) -> Pace:
    return Pace(given.latency, given.slots, given.jitter, given.seed)


def main(stage: StageName, slots: int, arguments: Sequence[str] | None = None) -> None:
    """Measures a stage as the command line says; the last line is JSON."""
    parser = argparse.ArgumentParser(description=f"Measures {stage} against an endpoint of known pace.")
    pace_arguments(parser, slots)
    given = parser.parse_args(arguments)
    print(json.dumps(measured(stage, given.prompts, given.completions, pace_of(given))))
