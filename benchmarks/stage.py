"""One stage in a process of its own, which can be measured and killed: what `measure.run_stage` starts.

Its last line is JSON: the artifact's key, the seconds of the stage alone, and the most memory (MiB) the process held.
Only the stage that runs is imported, as by its own command.
"""

import argparse
import json
import re
import time
from pathlib import Path

from nothing_gpt import endpoint
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import JudgeSettings, SamplingSettings
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import exits_cleanly
from nothing_gpt.store import open_store

MODEL = "bench"


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description="Runs one stage against a benchmark's endpoint.")
    parser.add_argument("stage", choices=["generation", "judging"])
    parser.add_argument("folder", type=Path, help="holds the stage's input; the store is made in it")
    parser.add_argument("url")
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--completions", type=int, default=3)
    parser.add_argument("--timeout", type=float, help="seconds after which a request is given up")
    given = parser.parse_args()
    if given.timeout:
        endpoint.TIMEOUT_S = given.timeout
    workshop = Workshop(open_store(str(given.folder / "store")), given.folder / "work")
    service = Service(lambda: given.url, MODEL, identity="benchmark")
    started = time.monotonic()
    made = (_generate if given.stage == "generation" else _judge)(workshop, given, service)
    seconds = time.monotonic() - started
    print(json.dumps({"key": made.key, "reused": made.reused, "stage_s": seconds, "peak_mib": _peak_mib()}))


def _generate(workshop: Workshop, given: argparse.Namespace, service: Service) -> Artifact:
    from nothing_gpt.dpo.generate_pairs import generate_pairs

    prompts = workshop.adopt(Stage("prompts", 0), {"prompts.jsonl": given.folder / "prompts.jsonl"})
    settings = SamplingSettings(model=MODEL, concurrency=given.slots, num_completions=given.completions)
    return generate_pairs(workshop, prompts, settings, service)


def _judge(workshop: Workshop, given: argparse.Namespace, service: Service) -> Artifact:
    from nothing_gpt.dpo.judge import judge

    file = given.folder / "completions.jsonl"
    completions = workshop.adopt(Stage("generate_pairs", 0), {"completions.jsonl": file})
    return judge(workshop, completions, JudgeSettings(model=MODEL, concurrency=given.slots), service)


def _peak_mib() -> float:
    """The process's own high-water mark: what `wait4` tells includes the parent's, of which it was forked."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
