"""What a second replica of an endpoint gives: one stage against one, two ... replicas of equal latency and slots.

    python -m benchmarks.replicas [--replicas 1 2] [--prompts 120] [--latency 1] [--slots 12]

`speedup` is the serving time of the first number of replicas, divided by that of this one. The last line is JSON.
"""

import argparse
import json
from contextlib import ExitStack
from typing import Any

from benchmarks.endpoint import Pace
from benchmarks.measure import input_folder, run_stage, serving

COMPLETIONS = 3


def measured(replicas: int, prompts: int, pace: Pace) -> dict[str, Any]:
    """Generation against so many replicas, from the first request to the last answer."""
    with input_folder("generation", prompts, COMPLETIONS) as folder, ExitStack() as stack:
        benches = [stack.enter_context(serving(pace)) for _ in range(replicas)]
        url = ",".join(bench.url for bench in benches)
        run_stage("generation", folder, url, pace.slots, "--completions", COMPLETIONS)
        calls = [[call for call in bench.calls() if call[2]] for bench in benches]
        work = sum(bench.stats()["work_s"] for bench in benches)
    served = [call for those in calls for call in those]
    seconds = max(answered or 0.0 for _, _, answered in served) - min(arrived for _, arrived, _ in served)
    return {
        "replicas": replicas,
        "serve_s": round(seconds, 2),
        "ideal_s": round(work / pace.slots / replicas, 2),
        "requests": [len(those) for those in calls],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--latency", type=float, default=1.0, help="seconds a sequence")
    parser.add_argument("--slots", type=int, default=12, help="sequences that each replica works on at once")
    given = parser.parse_args()
    runs = [measured(replicas, given.prompts, Pace(given.latency, given.slots)) for replicas in given.replicas]
    for run in runs:
        run["speedup"] = round(runs[0]["serve_s"] / run["serve_s"], 3)
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
