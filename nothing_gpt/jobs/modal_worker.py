"""The container's side of training on Modal: from what lies on the volume to an adapter on it.

It gets the volume as a folder and knows no `modal`; `deployments/modal_app.py` calls it, and `modal.py` asks for it.
Checkpoints go to the volume beside the run's inputs, so that a call that was preempted or ran out of time goes on.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from nothing_gpt.checkpoints import COMPLETE, fetch_folder, keep_folder
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.processes import QUIET, Child
from nothing_gpt.progress import CHILD
from nothing_gpt.records import file_digest
from nothing_gpt.store import FolderStore
from nothing_gpt.version import code_digest

INPUTS, ADAPTER = "inputs", "adapter"
COMMIT_SECONDS = 30.0
"""What the volume was given is lost with the container unless it was committed."""


class Order(TypedDict):
    """What a call is to do; paths are relative to the volume. No secret is in it."""

    module: str
    run: str
    """The run's fingerprint."""
    folder: str
    """The run's own: `inputs/{data,adapter}/` and `inputs/settings.json`, checkpoints, at last `adapter/`."""
    inputs: dict[str, str]
    """SHA-256 of each file in `inputs/`, by its name there."""
    base: str
    """Folder of the base model on the volume, or its hub name."""
    base_files: dict[str, int]
    """Size (bytes) of each file of such a folder; empty for a hub name."""
    revision: str | None
    code: str
    """`code_digest` of who asks."""


class Outcome(TypedDict):
    """How it ended: exit code, last lines, and with code 0 the SHA-256 of each file in `adapter/`."""

    code: int
    tail: list[str]
    files: dict[str, str]


def work(order: Order, volume: Path, scratch: Path, commit: Callable[[], object]) -> Outcome:
    """Does what is ordered, in `scratch` on a fast disk; finished before, it is answered from the volume. `commit`
    makes what was written to the volume last. Lines of training are printed.

    Raises:
        TransientError: training was interrupted and saved a checkpoint, so that another try goes on from there. Modal
            tries again upon an exception, so what no other try mends is an outcome.
    """
    store = FolderStore(volume / order["folder"])
    adapter = scratch / order["run"] / "adapter"
    try:
        _check(order, volume)
        if not fetch_folder(store, ADAPTER, adapter):
            ended = _train(order, volume, adapter, commit)
            if ended["code"] == TransientError.exit_code:
                raise TransientError(f"{order['module']} was interrupted and saved a checkpoint; run again to go on")
            if ended["code"] != 0:
                return ended
            keep_folder(store, ADAPTER, adapter)
            commit()
        return Outcome(code=0, tail=[], files=json.loads(store.read(f"{ADAPTER}/{COMPLETE}") or b"{}"))
    except FatalError as error:
        return Outcome(code=FatalError.exit_code, tail=[f"error: {error}"], files={})


def _check(order: Order, volume: Path) -> None:
    """Raises FatalError where the code is another, or a file is not what was put on the volume."""
    if order["code"] != code_digest():
        raise FatalError("the deployed app has other code than yours; run `modal deploy deployments/modal_app.py`")
    for name, checksum in order["inputs"].items():
        if file_digest(volume / order["folder"] / INPUTS / name) != checksum:
            raise FatalError(f"{order['folder']}/{INPUTS}/{name} is damaged on the volume; run again")
    for name, size in order["base_files"].items():
        file = volume / order["base"] / name
        if not file.is_file() or file.stat().st_size != size:
            raise FatalError(
                f"{order['base']}/{name} is damaged on the volume; `modal volume rm -r` that folder and run again"
            )


def _train(order: Order, volume: Path, adapter: Path, commit: Callable[[], object]) -> Outcome:
    folder = volume / order["folder"]
    environment = {
        "SFT_ADAPTER_PATH": str(folder / INPUTS / "adapter"),
        "DPO_DATA_PATH": str(folder / INPUTS / "data"),
        "ADAPTER_PATH": str(adapter),
        "BASE_MODEL": str(volume / order["base"]) if order["base_files"] else order["base"],
        **({"BASE_REVISION": order["revision"]} if order["revision"] else {}),
    }
    arguments = ["--settings", str(folder / INPUTS / "settings.json"), "--work", str(adapter.with_name("work"))]
    arguments += ["--run", order["run"], "--store", str(folder)]
    committed = time.monotonic()

    def show(line: str) -> None:
        nonlocal committed
        print(line, flush=True)
        if time.monotonic() - committed >= COMMIT_SECONDS:
            try:
                commit()
            except RuntimeError as error:  # a file is open just now; the next one takes what this one could not
                print(f"the volume could not be committed: {error}", flush=True)
            committed = time.monotonic()

    log = adapter.with_name("log")
    try:
        variables = {**QUIET, CHILD: "1", "PYTHONUNBUFFERED": "1", **environment}
        with Child([sys.executable, "-m", order["module"], *arguments], log, env=variables) as child:
            code = child.wait(on_line=show)
            return Outcome(code=code, tail=child.tail(), files={})
    finally:
        commit()
