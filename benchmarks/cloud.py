"""What the store in Cloud Storage takes in time and memory, against our fake server on this machine.

    python -m benchmarks.cloud [--gib 2] [--objects 20000]

It shows what our side costs, not what a network or Google's side do. `peak` is this process's largest resident memory;
the server is a process of its own.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from nothing_gpt.store import open_store

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gib", type=int, default=2, help="size of the large file (GiB)")
    parser.add_argument("--objects", type=int, default=20_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "server").mkdir()
        command = [sys.executable, "-m", "tests.fake_gcs", str(folder / "server")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            os.environ.update(STORAGE_EMULATOR_HOST=server.stdout.readline().strip(), XDG_CACHE_HOME=name)
            try:
                _measure(folder, given.gib, given.objects)
            finally:
                server.kill()


def _measure(folder: Path, gib: int, objects: int) -> None:
    store = _timed("open, imports included", lambda: open_store("gs://bucket/prefix"))
    large = folder / "large"
    with large.open("wb") as file:
        for _ in range(gib << 6):
            file.write(os.urandom(1 << 24))
    _timed(f"{gib} GiB up", lambda: store.upload(large, "large"))
    _timed(f"{gib} GiB down", lambda: store.fetch("large"))
    _timed(f"{gib} GiB again, which only checks the copy", lambda: store.fetch("large"))

    def write(number: int) -> None:
        store.write(f"many/{number:06d}", b"")

    with ThreadPoolExecutor(8) as pool:
        _timed(f"{objects:,} small objects written by 8 threads", lambda: list(pool.map(write, range(objects))))
    _timed(f"{objects:,} objects listed", lambda: list(store.list("many")))


def _timed(what: str, act: Callable[[], Result]) -> Result:
    started = time.monotonic()
    result = act()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{time.monotonic() - started:7.2f} s   peak {peak:4.0f} MiB   {what}", flush=True)
    return result


if __name__ == "__main__":
    main()
