"""Stands in for training, as a process with its arguments: what it does follows from its settings and earlier tries.

`training.plan` lists what each try does: `stop` as if asked to, `fail`, `eat` too much memory, `wait` to be stopped,
`finish`. What it knows of earlier tries it finds in the store, like a checkpoint.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from nothing_gpt.errors import FatalError, TransientError, exits_cleanly
from nothing_gpt.progress import progress, say
from nothing_gpt.store import open_store

READY = "training is under way"


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser()
    for option in ("--settings", "--work", "--run", "--store"):
        parser.add_argument(option, required=True)
    given = parser.parse_args()
    store, key = open_store(given.store), f"checkpoints/{given.run}/tries"
    tries = int(store.read(key) or 0)
    act = json.loads(Path(given.settings).read_text())["training"]["plan"][tries]
    print(f"try {tries}: {act}")
    if act == "fail":
        raise FatalError("train.jsonl, line 3: no chosen side")
    if act == "eat":
        os.kill(os.getpid(), signal.SIGKILL)
    store.write(key, str(tries + 1).encode())
    if act == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TransientError.exit_code))
        print(READY, flush=True)
        time.sleep(120)
    if act == "stop":
        raise TransientError("asked to stop")
    with progress("train", 2) as advance:
        advance(2)
    say(f"base {os.environ['BASE_MODEL']} at {os.environ.get('BASE_REVISION')}")
    out = Path(shutil.copytree(os.environ["SFT_ADAPTER_PATH"], os.environ["ADAPTER_PATH"]))
    for name in ("train.jsonl", "val.jsonl"):
        assert (Path(os.environ["DPO_DATA_PATH"]) / name).read_text() == name
    (out / "metrics.json").write_text(json.dumps({"tries": tries + 1}))
    (out / "tracking").mkdir()
    (out / "tracking" / "events").write_bytes(b"\0" * 100)


if __name__ == "__main__":
    main()
