"""What may be deleted: whatever neither the last run or sweep nor a promoted adapter refers to, directly or through
lineage, and nobody gave.

That is old artifacts, and also the journals and the scratch folders of a run that was interrupted: a journal holds what
was answered, a scratch folder and `checkpoints` what training goes on from. Without them the next run asks and trains
again. Journals stay while an artifact that is kept lacks failed rows: the next run tries these again, and is to ask for
no others.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.record import last_run, last_sweep, waiting_runs
from nothing_gpt.artifacts import KEY, MANIFEST, Workshop, live_leases
from nothing_gpt.checkpoints import FOLDER as CHECKPOINTS
from nothing_gpt.dpo.order import BASES, JOBS, base_folder
from nothing_gpt.dpo.order import STAGE as TRAIN
from nothing_gpt.errors import FatalError
from nothing_gpt.given import ADAPTER, PROMPTS
from nothing_gpt.serve.registry import read_registry
from nothing_gpt.store import Store


@dataclass(frozen=True)
class Item:
    """Something that nothing refers to: its name, its size (bytes), and how to delete it."""

    name: str
    bytes: int
    delete: Callable[[], Any]


def unreferenced(workshop: Workshop) -> list[Item]:
    """Everything that may go. Nothing is deleted here. Raises FatalError while a run is at work."""
    _refuse_beside_a_run(workshop.store)
    kept = _referenced(workshop)
    made = [key.removesuffix(f"/{MANIFEST}") for key in workshop.store.list() if key.endswith(f"/{MANIFEST}")]
    folders = [key for key in made if KEY.fullmatch(key) and key not in kept and not _given(workshop, key)]
    if not any(manifest.failed for key in kept if (manifest := workshop.manifest(key))):
        folders += sorted({key.rpartition("/")[0] for key in workshop.store.list("journal")})
    folders += _folders(workshop.store, CHECKPOINTS)
    folders += _ordered(workshop, kept)
    return [*map(_stored(workshop), folders), *_scratch(workshop.work)]


def delete(store: Store, items: list[Item]) -> None:
    """Deletes what `unreferenced` found. Raises FatalError where a run has begun since."""
    _refuse_beside_a_run(store)
    for item in items:
        item.delete()


def _refuse_beside_a_run(store: Store) -> None:
    if held := live_leases(store):
        names = ", ".join(key.removeprefix("leases/") for key in held)
        raise FatalError(f"a run is at work on {names}; prune when it has ended")


def _referenced(workshop: Workshop) -> set[str]:
    """Keys of what the last run, those that wait for a person, the last sweep and every promoted version stand on."""
    store, run = workshop.store, last_run(workshop.store)
    summaries = [json.loads(store.read(f"{run}/summary.json") or b"{}") if run else {}, *waiting_runs(store)]
    waiting = [version.artifact for version in read_registry(store).versions]
    for summary in summaries:
        waiting += [stage["artifact"] for stage in summary.get("stages", {}).values() if stage.get("artifact")]
    for point in (last_sweep(store) or {}).get("points", []):
        waiting += point["stages"].values()
    kept: set[str] = set()
    while waiting:
        key = waiting.pop()
        if key not in kept:
            kept.add(key)
            manifest = workshop.manifest(key)
            waiting += manifest.lineage.values() if manifest else []
    return kept


def _given(workshop: Workshop, key: str) -> bool:
    """Whether somebody gave it, prompts or an adapter: settings name those, which are not ours to look through."""
    manifest = workshop.manifest(key) if key.startswith((f"{PROMPTS.name}/", f"{ADAPTER.name}/")) else None
    return bool(manifest and not manifest.lineage)


def _ordered(workshop: Workshop, kept: set[str]) -> list[str]:
    """Orders of trainings that are done and, where no other is waited for, base models that no kept adapter is of."""
    orders = _folders(workshop.store, JOBS)
    done = [order for order in orders if workshop.manifest(f"{TRAIN.name}/{order.removeprefix(f'{JOBS}/')}")]
    if done != orders:
        return done
    manifests = [workshop.manifest(key) for key in kept if key.startswith(f"{TRAIN.name}/")]
    needed = {base_folder(manifest.settings["base"]) for manifest in manifests if manifest}
    return done + [base for base in _folders(workshop.store, BASES) if base not in needed]


def _folders(store: Store, folder: str) -> list[str]:
    return sorted({"/".join(key.split("/")[:2]) for key in store.list(folder)})


def _stored(workshop: Workshop) -> Callable[[str], Item]:
    def item(folder: str) -> Item:
        keys = list(workshop.store.list(folder))
        size = sum(workshop.store.size(key) or 0 for key in keys)
        # The manifest goes first: from then on the artifact is gone, not damaged.
        ordered = sorted(keys, key=lambda key: not key.endswith(MANIFEST))
        return Item(folder, size, lambda: [workshop.store.delete(key) for key in ordered])

    return item


def _scratch(work: Path) -> Iterator[Item]:
    for folder in sorted(work.glob("*/*")):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        yield Item(f"scratch {folder.relative_to(work)}", size, lambda folder=folder: shutil.rmtree(folder))
