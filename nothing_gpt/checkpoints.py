"""Which checkpoint may a killed training go on from? Only a whole one, else the next older.

Transformers takes the newest folder on trust: without its adapter file training silently restarts, without the
optimizer's state it silently diverges. `trainer_state.json` is written last.
"""

import json
import zipfile
from pathlib import Path

_STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def newest_whole(folder: Path) -> Path | None:
    """The newest whole `checkpoint-<step>` in a trainer's output folder, or None: then training starts anew."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    newest_first = sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)
    return next((path for path in newest_first if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether everything that resuming reads is there and can be opened: a cut file shows in its header or index."""
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        with safe_open(checkpoint / "adapter_model.safetensors", framework="np") as adapter:
            if not adapter.keys():
                return False
        for name in _STATE:
            zipfile.ZipFile(checkpoint / name).close()
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False
    return True
