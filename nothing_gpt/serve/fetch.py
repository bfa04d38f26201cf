"""Adapters for a vLLM that does not share the flow's disk: fetched from the store into a folder beside it.

    python -m nothing_gpt.serve.fetch --store gs://BUCKET/PREFIX --folder /adapters [--follow]

puts the registry's current adapter into the folder, at `<stage>/<fingerprint>`, and points the link `current` there:
what vLLM starts with. With --follow it goes on until it is told to stop: adapters that runs want to load come too, and
the link follows the registry, so that a restart of vLLM loads what was promoted. The runs' side is `load`, which asks
for an adapter by a small object in the store and loads it as soon as it has come. It looks after one folder: of several
vLLMs behind one address each has its own, and `load` reaches one of them.
"""

import argparse
import json
import re
import shutil
import signal
import threading
import time
from pathlib import Path, PurePosixPath

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from nothing_gpt.adapters import CONFIG, WEIGHTS, adapter_digest
from nothing_gpt.artifacts import Workshop
from nothing_gpt.errors import FatalError, NothingGPTError, exits_cleanly
from nothing_gpt.progress import say
from nothing_gpt.records import file_digest
from nothing_gpt.serve.registry import read_registry
from nothing_gpt.store import Store, open_store, reporting_disk
from nothing_gpt.vllm_admin import VLLM, NoAdapterThere

KEY = "serving/wanted.json"
"""Keys of the adapters that runs want to load, and when (Unix time, s) each was asked for last."""
WANTED_S = 7 * 86400.0
"""How long an adapter stays in the folder after it was asked for; the current one always does."""
EVERY_S = 2.0
"""Two objects are read as often: about 4 US cents a day in Cloud Storage."""
WAIT_S = 600.0
"""Longest wait for an adapter to come into the server's folder."""
CURRENT = "current"


def load(store: Store, admin: VLLM, name: str, path: str, in_place: bool = False) -> None:
    """`VLLM.load` for a server beside which a fetcher follows this store; `path` is FOLDER/<stage>/<fingerprint>.

    Raises:
        FatalError: the adapter does not come within 10 minutes, or as `VLLM.load`.
        TransientError: as `VLLM.load`.
    """
    want(store, "/".join(PurePosixPath(path).parts[-2:]))
    attempts = Retrying(
        retry=retry_if_exception_type(NoAdapterThere),
        stop=stop_after_delay(WAIT_S),
        wait=wait_fixed(EVERY_S / 2),
        reraise=True,
    )
    attempts(admin.load, name, path, in_place)


def want(store: Store, key: str) -> None:
    """Asks for the adapter with this key of its artifact, and forgets what was asked for long ago."""
    while True:
        present = store.read(KEY)
        wanted = json.dumps({**_wanted(present), key: time.time()}).encode()
        if store.swap(KEY, wanted, present):
            return


def fetch_current(store: Store, folder: Path) -> str:
    """Brings the current adapter into the folder and points the link at it; returns its key.

    Raises:
        FatalError: there is none, it is no whole adapter or not the one that was promoted, or the folder cannot be
            written.
        TransientError: the store cannot be reached.
    """
    version = read_registry(store).current_version
    key = version.artifact if version else _starting(store)
    _fetch(store, key, folder)
    link = folder / CURRENT
    if not link.is_symlink() or link.readlink() != Path(key):
        if version and adapter_digest(folder / key) != version.digest:
            shutil.rmtree(folder / key)
            raise FatalError(
                f"{store.uri}/{key}: not the files that were promoted as version {version.version}; make another "
                "version current with `nothing-gpt adapters rollback` or `promote`"
            )
        point(link, Path(key))
        say(f"current: {key}")
    return key


def point(link: Path, target: Path) -> None:
    """Makes the link point there; there is no moment without one. Raises FatalError where it cannot be written."""
    fresh = link.with_name(f".{link.name}")
    with reporting_disk(link):
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(link)


def mirror(store: Store, folder: Path) -> None:
    """Makes the folder hold the current adapter and the wanted ones, and no others. One that cannot be had keeps none
    of the others back.

    Raises:
        FatalError, TransientError: as `fetch_current`, for the last of those that failed.
    """
    failure = None
    wanted = set(_wanted(store.read(KEY)))
    for key in sorted(wanted):
        try:
            _fetch(store, key, folder)
        except NothingGPTError as error:
            failure = error
    current = fetch_current(store, folder)
    for there in folder.glob("[!.]*/*"):
        if there.parent.name != CURRENT and there.relative_to(folder).as_posix() not in wanted | {current}:
            shutil.rmtree(there, ignore_errors=True)
    if failure:
        raise failure


def follow(store: Store, folder: Path, stop: threading.Event) -> None:
    """`mirror` again and again until `stop` is set. A failure is said once and tried again: vLLM serves on."""
    said = ""
    while not stop.wait(EVERY_S):
        try:
            mirror(store, folder)
            said = ""
        except NothingGPTError as error:
            if str(error) != said:
                said = str(error)
                say(f"{said}; trying again")
        _clear(folder)


def _wanted(data: bytes | None) -> dict[str, float]:
    """What is asked for now. A damaged object asks for nothing: the next run that loads writes a whole one."""
    try:
        asked = dict(json.loads(data or b"{}"))
        return {str(key): float(at) for key, at in asked.items() if time.time() - float(at) < WANTED_S}
    except (ValueError, TypeError):
        return {}


def _starting(store: Store) -> str:
    """The starting adapter that came into the store last: what the stable name means while nothing is promoted."""
    workshop = Workshop(store, Path())
    keys = [key.removesuffix("/manifest.json") for key in store.list("sft") if key.endswith("/manifest.json")]
    found = [(manifest.created, key) for key in keys if (manifest := workshop.manifest(key))]
    if not found:
        raise FatalError(
            f"{store.uri}: no adapter is promoted and none to start from is there; put it there with "
            "`nothing-gpt run --until sft`"
        )
    return max(found)[1]


def _fetch(store: Store, key: str, folder: Path) -> None:
    """The adapter's two files, checked against its manifest, in a folder that gets its name when it is whole."""
    target, partial = folder / key, folder / ".partial"
    if not re.fullmatch(r"[\w-]+/[0-9a-f]{16}", key):
        raise FatalError(f"{store.uri}: {key!r} is no artifact's key; correct {KEY} or the registry")
    if target.is_dir():
        return
    manifest = Workshop(store, folder).manifest(key)
    with reporting_disk(target):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in (CONFIG, WEIGHTS):
            try:
                file = store.fetch(f"{key}/{name}")
            except FileNotFoundError:
                file = None
            entry = manifest.files.get(name) if manifest else None
            if file is None or entry is None or file_digest(file) != entry.sha256:
                raise FatalError(f"{store.uri}/{key}: {name} is not there, or damaged; make the adapter again")
            shutil.copyfile(file, partial / name)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(target)
    say(f"fetched {key}")


def _clear(folder: Path) -> None:
    """Takes away the store's own copies of what was fetched."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)


@exits_cleanly
def main() -> None:
    """Fetches, and with --follow goes on."""
    parser = argparse.ArgumentParser(prog="python -m nothing_gpt.serve.fetch", description="Adapters beside a vLLM.")
    parser.add_argument("--store", required=True, help="gs://BUCKET/PREFIX, or a folder")
    parser.add_argument("--folder", required=True, type=Path, help="where vLLM sees the adapters")
    parser.add_argument("--follow", action="store_true", help="go on until SIGTERM")
    given = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    store = open_store(given.store, cache=given.folder / ".cache")
    if given.follow:
        follow(store, given.folder, stop)
    else:
        fetch_current(store, given.folder)
        _clear(given.folder)


if __name__ == "__main__":
    main()
