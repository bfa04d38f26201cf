"""The guide's names in a bucket: `data/dpo`, `adapters/nothing-gpt-sft` and `adapters/nothing-gpt` hold copies of what
is current, so that `gsutil cp -r gs://BUCKET/PREFIX/adapters/nothing-gpt .` gets it.

They are for people and their scripts. Nothing of ours reads them: the truth is the artifact that each is a copy of. A
copy is whole while its COMPLETE, `{file name: SHA-256}`, is there: that goes before a file changes and comes last.
"""

import json

from nothing_gpt.adapters import CONFIG, WEIGHTS
from nothing_gpt.artifacts import Workshop, lease
from nothing_gpt.checkpoints import COMPLETE
from nothing_gpt.errors import NothingGPTError
from nothing_gpt.progress import say

NAMES = {
    "pairs": ("data/dpo", ("train.jsonl", "val.jsonl")),
    "sft": ("adapters/nothing-gpt-sft", (CONFIG, WEIGHTS)),
    "promote": ("adapters/nothing-gpt", (CONFIG, WEIGHTS)),
}
"""Folder and files of the copy, by the stage whose artifact is copied."""


def name_copy(workshop: Workshop, stage: str, key: str | None) -> None:
    """Makes the folder with the stage's name, if it has one, a copy of the artifact at `key`; None: of nothing. Where
    the store fails, that is said and no more: no result depends on it, and the next run tries again."""
    if stage not in NAMES:
        return
    folder, names = NAMES[stage]
    try:
        manifest = workshop.manifest(key) if key else None
        wanted = {name: manifest.files[name].sha256 for name in names} if manifest else {}
        _copy(workshop, folder, wanted, key)
    except (NothingGPTError, FileNotFoundError) as error:
        say(f"{folder} is not what is current: {error}; the next run tries again")


def _copy(workshop: Workshop, folder: str, wanted: dict[str, str], key: str | None) -> None:
    store, marker, whole = workshop.store, f"{folder}/{COMPLETE}", json.dumps(wanted).encode()
    if store.read(marker) == whole:
        return
    with lease(store, f"leases/{folder.replace('/', '-')}"):
        store.delete(marker)
        for name in list(store.list(folder)):
            if name.removeprefix(f"{folder}/") not in wanted:
                store.delete(name)
        for name in wanted:
            store.copy(f"{key}/{name}", f"{folder}/{name}")
        if wanted:
            store.write(marker, whole)
