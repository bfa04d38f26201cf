"""A stage's rows in shards: ranges in their order, of which several are worked on at once, on any machines.

A worker asks for what is missing of its shard and leaves the replies in the journal. The stage then reads all of them
there and asks for what is missing still, so its result is that of one machine, whatever became of the shards. Who runs
them is not known here.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from nothing_gpt.config import EndpointSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.replies import Meter

LEAST_ROWS = 1024
MOST_SHARDS = 64

Asking = TypeVar("Asking", bound=EndpointSettings)
Row = TypeVar("Row")


@dataclass(frozen=True)
class Shard:
    """The rows from `start` to before `stop`, by their place in the stage's order, of all `total`."""

    number: int
    start: int
    stop: int
    total: int

    def __len__(self) -> int:
        return self.stop - self.start


Spread = Callable[[Sequence[Shard]], Sequence[Mapping[str, Meter]]]
"""Has shards worked on, and returns when they are done: for each that was, what its calls cost, by model. Raises what
a shard raises."""


def shards(rows: int) -> list[Shard]:
    """All shards of so many rows. They follow from the number alone: a run that goes on meets the same ones."""
    size = max(LEAST_ROWS, -(-rows // MOST_SHARDS))
    return [Shard(number, start, min(start + size, rows), rows) for number, start in enumerate(range(0, rows, size))]


def ask_elsewhere(
    spread: Spread | None, rows: Iterable[Row], total: int, lacks: Callable[[Row], bool]
) -> Sequence[Mapping[str, Meter]]:
    """Has the shards worked on that lack something; returns what that cost. A single shard is left to
    the stage."""
    parts = shards(total)
    if spread is None or len(parts) == 1:
        return []
    rows = iter(rows)
    due = [part for part in parts if any(map(lacks, [*islice(rows, len(part))]))]
    return spread(due) if due else []


def one_model(asked: str, names: Collection[str], group: str) -> str | None:
    """Who answered a stage's rows; None where nobody did or nobody said. Each worker sees to it for its own rows.

    Raises:
        FatalError: several did, as workers who began at the same time met several.
    """
    if len(names) > 1:
        raise FatalError(
            f"{group}.model: {asked} was answered by {' and by '.join(sorted(names))}, to different workers; set it to "
            "one of these, and run again"
        )
    return next(iter(names), None)


def share_of(settings: Asking, shard: Shard, workers: int) -> Asking:
    """The settings for a shard that is one of so many at once: its part of the window, and of what may be spent its
    rows' part, so that all of them keep the whole's limits. What failed rows are borne counts for all rows together."""
    most = settings.max_cost_usd
    return settings.model_copy(
        update={
            "concurrency": max(1, settings.concurrency // workers),
            "max_cost_usd": None if most is None else most * len(shard) / shard.total,
        }
    )
