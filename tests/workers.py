"""Several workers on a stage's shards: threads, each of which opens the store anew as on a machine of its own."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nothing_gpt.artifacts import Artifact, Workshop
from nothing_gpt.endpoint import Service
from nothing_gpt.replies import Meter
from nothing_gpt.shards import Shard, share_of
from nothing_gpt.store import open_store

WORKERS = 4


@dataclass
class Workers:
    """A spread of the stage whose function for one shard is `work`."""

    work: Callable[..., Mapping[str, Meter]]
    given: Artifact
    settings: Any
    service: Service
    spread: list[Shard] = field(default_factory=list)
    """What they were given."""

    def __call__(self, due: Sequence[Shard]) -> Sequence[Mapping[str, Meter]]:
        self.spread += due
        with ThreadPoolExecutor(WORKERS) as threads:
            return [*threads.map(self._one, due)]

    def _one(self, shard: Shard) -> Mapping[str, Meter]:
        workshop = Workshop(open_store(self.given.uri), Path("unused"))
        return self.work(workshop, self.given, share_of(self.settings, shard, WORKERS), self.service, shard)


def nowhere(due: Sequence[Shard]) -> Sequence[Mapping[str, Meter]]:
    """The spread of a stage that is not to be spread."""
    raise AssertionError(f"spread although there is no need: {due}")


def timeless(usage: dict[str, Any]) -> dict[str, Any]:
    """What a stage cost, without its latencies."""
    return {name: value for name, value in usage.items() if not name.startswith("latency")}
