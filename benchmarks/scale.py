"""Whether a stage grows straight with its rows: seconds, CPU, memory, the store's work and the way back at each size.

    python -m benchmarks.scale [--rows 1000 10000 100000 1000000] [--in-process]

Generation against an endpoint of 5 ms. `--in-process` puts the endpoint into the stage's own process, without HTTP,
which makes a million a matter of minutes; its figures are to be compared with each other alone. What a million rows
hold in memory is told at any size, by filling what holds it. Real latencies are not here: they add waiting, and no
work. The last line is JSON; it exits with 1 where a limit is not kept. On a busy machine look at the CPU.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.endpoint import Pace
from benchmarks.measure import input_folder, run_stage, serving
from benchmarks.stage import peak_mib
from nothing_gpt.positions import HASH_BYTES, Positions
from nothing_gpt.records import Rows
from nothing_gpt.replies import Meter, Reply

LATENCY_S = 0.005
SLOTS = 64
COMPLETIONS = 3
FROM_ROWS = 10_000
"""Below it the limits on a thousand rows do not hold: what is done once is a part of what a row takes."""
SPREAD = 1.2
"""Most that a thousand rows may take, of the least that they take at another size."""
GROWTH_MIB = 200.0
"""Most memory above that at `FROM_ROWS` rows."""
SIMULATED_ROWS = 1_000_000
RESUME_S = 30.0
LISTINGS = 8
"""Most listings of the store in a stage, whatever its size."""
WRITTEN = 2.1
"""Most bytes that the journal writes for each that it keeps: once as they come, once when they are merged."""


def measured(rows: int, in_process: bool) -> dict[str, Any]:
    """Generation from nothing, and again with its artifact there."""
    options = ["--completions", COMPLETIONS, *(("--in-process", LATENCY_S) if in_process else ())]
    pace = Pace(latency=LATENCY_S, slots=SLOTS)
    with input_folder("generation", rows, COMPLETIONS) as folder:
        with nullcontext() if in_process else serving(pace) as bench:
            url = bench.url if bench else "http://here/v1"
            first = run_stage("generation", folder, url, SLOTS, *options)
            resumed = run_stage("generation", folder, url, SLOTS, *options)
        kept = sum(segment.stat().st_size for segment in (folder / "store" / "journal").rglob("*.jsonl"))
    if not resumed.said["reused"]:
        sys.exit("a finished stage was done again")
    store = first.said["store"]
    return {
        "rows": rows,
        "s_per_1000": round(first.said["stage_s"] / rows * 1000, 4),
        "cpu_s_per_1000": round(first.said["stage_cpu_s"] / rows * 1000, 4),
        "peak_mib": round(first.said["peak_mib"], 1),
        "listings": store["listings"],
        "segments": store["segments"],
        "written_per_kept": round(store["journal_bytes"] / kept, 3),
        "resume_s": round(resumed.wall_s, 2),
        "resume_cpu_s": round(resumed.cpu_s, 2),
    }


def held_mib(rows: int) -> float:
    """The most that a stage holds at a time for so many rows: their places, hashes and latencies. No row is asked.
    Measured in a process of its own, for SQLite's memory is none of Python's."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_hold, rows).result()


def _hold(rows: int) -> float:
    before = peak_mib()
    prompts, seen = Rows[None]([Path("nowhere")], lambda identity, row: None), Positions()
    for number in range(rows):
        identity = hashlib.sha256(number.to_bytes(8)).hexdigest()
        seen.add(bytes.fromhex(identity[: 2 * HASH_BYTES]), number)
        prompts.note(0, number, identity)
    del seen
    index, meter, reply = Positions(), Meter(), Reply("", [], 0, 0)
    for number, identity in enumerate(prompts.ids()):
        index.add(bytes.fromhex(identity[: 2 * HASH_BYTES]), number)
        meter.count(reply, float(number))
    meter.figures()
    return peak_mib() - before


def broken(sizes: list[dict[str, Any]]) -> list[str]:
    """The limits that are not kept, each in words with its figures."""
    large = [size for size in sizes if size["rows"] >= FROM_ROWS]
    found = [
        f"{name} between {min(figures)} and {max(figures)}"
        for name in ("s_per_1000", "cpu_s_per_1000")
        if large and max(figures := [size[name] for size in large]) > SPREAD * min(figures)
    ]
    found += [
        f"peak_mib at {size['rows']:,} rows is {size['peak_mib']}, and at {large[0]['rows']:,} {large[0]['peak_mib']}"
        for size in large
        if size["peak_mib"] - large[0]["peak_mib"] > GROWTH_MIB
    ]
    for name, most in (("resume_s", RESUME_S), ("listings", LISTINGS), ("written_per_kept", WRITTEN)):
        found += [f"{name} at {size['rows']:,} rows is {size[name]}" for size in sizes if size[name] > most]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--in-process", action="store_true", help="no HTTP: for sizes that would take hours")
    given = parser.parse_args(arguments)
    sizes = []
    for rows in sorted(given.rows):
        sizes.append(measured(rows, given.in_process))
        print(json.dumps(sizes[-1]), flush=True)
    held = held_mib(SIMULATED_ROWS) - held_mib(FROM_ROWS)
    found = broken(sizes) + [f"simulated: {SIMULATED_ROWS:,} rows hold {held:.0f} MiB more"] * (held > GROWTH_MIB)
    said = {"in_process": given.in_process, "sizes": sizes, "simulated_growth_mib": round(held, 1), "broken": found}
    print(json.dumps(said))
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main()
