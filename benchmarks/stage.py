"""One stage in a process of its own, which can be measured and killed: what `measure.run_stage` starts.

Its last line is JSON: the artifact's key, seconds and CPU of the stage alone, the most memory (MiB) the process held,
and what it did with its store. Only the stage that runs is imported, as by its own command.
"""

import argparse
import asyncio
import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nothing_gpt import endpoint
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import JudgeSettings, SamplingSettings
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import exits_cleanly
from nothing_gpt.store import FolderStore

MODEL = "bench"


class CountingStore(FolderStore):
    """A folder that counts its listings, the keys they gave, and the segments and bytes that journals wrote."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.counts = {"listings": 0, "keys_listed": 0, "segments": 0, "journal_bytes": 0}

    def list(self, prefix: str = "") -> Iterator[str]:
        self.counts["listings"] += 1
        for key in super().list(prefix):
            self.counts["keys_listed"] += 1
            yield key

    def stream(self, key: str, pieces: Iterable[bytes]) -> None:
        if not key.startswith("journal/"):
            return super().stream(key, pieces)
        self.counts["segments"] += 1
        super().stream(key, self._counted(pieces))

    def _counted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.counts["journal_bytes"] += len(piece)
            yield piece


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description="Runs one stage against a benchmark's endpoint.")
    parser.add_argument("stage", choices=["generation", "judging"])
    parser.add_argument("folder", type=Path, help="holds the stage's input; the store is made in it")
    parser.add_argument("url")
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--completions", type=int, default=3)
    parser.add_argument("--timeout", type=float, help="seconds after which a request is given up")
    parser.add_argument("--in-process", type=float, metavar="S", help="no address: answers after so many seconds")
    given = parser.parse_args()
    if given.timeout:
        endpoint.TIMEOUT_S = given.timeout
    if given.in_process is not None:
        _answer_here(given.in_process)
    store = CountingStore(given.folder / "store")
    workshop = Workshop(store, given.folder / "work")
    service = Service(lambda: given.url, MODEL, identity="benchmark")
    started, cpu = time.monotonic(), time.process_time()
    made = (_generate if given.stage == "generation" else _judge)(workshop, given, service)
    took = {"stage_s": time.monotonic() - started, "stage_cpu_s": time.process_time() - cpu, "peak_mib": peak_mib()}
    print(json.dumps({"key": made.key, "reused": made.reused, **took, "store": store.counts}))


def _answer_here(seconds: float) -> None:
    """Puts an endpoint into this process in place of the client's HTTP, which is most of a request's work."""
    import openai

    from benchmarks.endpoint import completion, sequences

    async def post(_: Any, path: str, *, body: dict[str, Any], **__: Any) -> Any:
        await asyncio.sleep(seconds)
        answer = completion(sequences(body), verdict="response_format" in body)
        return SimpleNamespace(headers={}, content=answer.encode())

    openai.AsyncOpenAI.post = post  # pyright: ignore[reportAttributeAccessIssue]


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


def peak_mib() -> float:
    """The process's own high-water mark: what `wait4` tells includes the parent's, of which it was forked."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
