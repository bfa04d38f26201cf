"""What may be deleted: whatever neither the last run nor a promoted adapter refers to, directly or through lineage.

That is old artifacts, scratch folders with their checkpoints, and journals. A journal is what an unfinished stage goes
on from; without it a rerun under changed settings asks again for what it holds, so prune when a set of prompts is done.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.record import last_run
from nothing_gpt.artifacts import MANIFEST, Workshop
from nothing_gpt.serve.registry import read_registry


@dataclass(frozen=True)
class Item:
    """Something that nothing refers to: its name, its size (bytes), and how to delete it."""

    name: str
    bytes: int
    delete: Callable[[], Any]


def unreferenced(workshop: Workshop) -> list[Item]:
    """Everything that may go. Nothing is deleted here; do not delete while a run is at work."""
    kept = _referenced(workshop)
    made = [key.removesuffix(f"/{MANIFEST}") for key in workshop.store.list() if key.endswith(f"/{MANIFEST}")]
    folders = [key for key in made if key not in kept]
    folders += sorted({key.rpartition("/")[0] for key in workshop.store.list("journal")})
    return [*map(_stored(workshop), folders), *_scratch(workshop.work)]


def _referenced(workshop: Workshop) -> set[str]:
    """Keys of the artifacts that the last run and every promoted version stand on."""
    run = last_run(workshop.store)
    summary = json.loads(workshop.store.read(f"{run}/summary.json") or b"{}") if run else {}
    waiting = [version.artifact for version in read_registry(workshop.store).versions]
    waiting += [stage["artifact"] for stage in summary.get("stages", {}).values() if stage.get("artifact")]
    kept: set[str] = set()
    while waiting:
        key = waiting.pop()
        if key not in kept:
            kept.add(key)
            manifest = workshop.manifest(key)
            waiting += manifest.lineage.values() if manifest else []
    return kept


def _stored(workshop: Workshop) -> Callable[[str], Item]:
    def item(folder: str) -> Item:
        keys = list(workshop.store.list(folder))
        size = sum(workshop.store.fetch(key).stat().st_size for key in keys)
        # The manifest goes first: from then on the artifact is gone, not damaged.
        ordered = sorted(keys, key=lambda key: not key.endswith(MANIFEST))
        return Item(folder, size, lambda: [workshop.store.delete(key) for key in ordered])

    return item


def _scratch(work: Path) -> Iterator[Item]:
    for folder in sorted(work.glob("*/*")):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        yield Item(f"scratch {folder.relative_to(work)}", size, lambda folder=folder: shutil.rmtree(folder))
