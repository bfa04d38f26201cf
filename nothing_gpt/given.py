"""What a person gives to a run, prompts and a starting adapter: files of this machine, objects in a bucket, or what
`nothing-gpt push` has put into the store.

What is made of them follows from their bytes alone. So a machine that has no such files, as a worker in a cluster, goes
on with what one that has them began.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from nothing_gpt.adapters import CONFIG, WEIGHTS, validate_adapter
from nothing_gpt.artifacts import KEY, Artifact, Stage, Workshop
from nothing_gpt.errors import FatalError
from nothing_gpt.records import read_prompts
from nothing_gpt.store import Store

PROMPTS = Stage("given-prompts", 1)
PROMPTS_FILE = "prompts.jsonl"
ADAPTER = Stage("sft", 1)
ADAPTER_FILES = (CONFIG, WEIGHTS)
BUCKET = "gs://"


def give(workshop: Workshop, path: Path) -> Artifact:
    """Keeps a file of prompts, or an adapter's folder, for runs on machines that do not have it.

    Raises:
        FatalError: it is neither, or one that a run would refuse.
    """
    if path.is_dir():
        validate_adapter(path)
        return workshop.adopt(ADAPTER, {name: path / name for name in ADAPTER_FILES})
    if not path.is_file():
        raise FatalError(
            f"{path}: no file of prompts, no adapter's folder and no artifact's key; give one of them (a key is "
            "STAGE/FINGERPRINT, as `nothing-gpt report --json` shows them)"
        )
    read_prompts(path)
    return workshop.adopt(PROMPTS, {PROMPTS_FILE: path})


def is_here(address: str) -> bool:
    """Whether that is a path of this machine. One that looks like an artifact's key begins with `./`."""
    return not (KEY.fullmatch(address) or address.startswith(BUCKET))


def prompts_file(workshop: Workshop, address: str, bucket: Callable[[str], Store]) -> Path:
    """The file of prompts with this path, gs:// address or key, on this machine; `bucket` opens a folder in one.

    Raises:
        FatalError: it is not in the bucket or in the store, or no address of a file. TransientError: these cannot be
            reached.
    """
    if is_here(address):
        return Path(address)
    folder, _, name = address.rpartition("/") if address.startswith(BUCKET) else (address, "", PROMPTS_FILE)
    if not name or folder == BUCKET[:-1]:
        raise FatalError(f"{address}: names no file; give gs://BUCKET/FOLDER/FILE")
    return _fetched(workshop, folder, [name], bucket)[0]


def adapter_files(workshop: Workshop, address: str, bucket: Callable[[str], Store]) -> dict[str, Path]:
    """The two files of the adapter with this folder, gs:// address or key, by name. Raises as `prompts_file`."""
    if is_here(address):
        return {name: Path(address) / name for name in ADAPTER_FILES}
    return dict(zip(ADAPTER_FILES, _fetched(workshop, address, ADAPTER_FILES, bucket), strict=True))


def _fetched(workshop: Workshop, folder: str, names: Sequence[str], bucket: Callable[[str], Store]) -> list[Path]:
    where = folder if folder.startswith(BUCKET) else f"{workshop.store.uri}/{folder}"
    if where == folder:
        fetch = bucket(folder).fetch
    elif found := workshop.find(*folder.split("/")):
        fetch = partial(workshop.file, found)
    else:
        raise FatalError(f"{where}: not there, or damaged; `nothing-gpt push` puts it there and prints its key")
    try:
        return [fetch(name) for name in names]
    except FileNotFoundError:
        raise FatalError(f"{where}: has no {' and '.join(names)}; correct the address") from None
