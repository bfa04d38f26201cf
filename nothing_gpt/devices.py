"""Which GPUs of this machine does a training take? Free ones: who takes one holds its lock file until it ends.

So several trainings at once get different ones. Not covered: one GPU that goes by its number here and by its UUID
there, and whoever does not ask, such as vLLM.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
LOCKS = Path(tempfile.gettempdir())


@contextmanager
def taken(count: int) -> Iterator[None]:
    """For the block CUDA_VISIBLE_DEVICES names `count` GPUs, of those that can be seen: free ones first, and where they
    do not suffice, others too. Where there are none at all it stays as it is."""
    with ExitStack() as held:
        seen = _seen()
        free: list[str] = []
        for device in seen:
            if len(free) < count and _lock(device, held):
                free.append(device)
        if seen:
            os.environ[VISIBLE] = ",".join([*free, *(device for device in seen if device not in free)][:count])
        yield


def _seen() -> list[str]:
    named = os.environ.get(VISIBLE)
    if named is not None:
        return [device for device in named.split(",") if device]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _lock(device: str, held: ExitStack) -> bool:
    """Whether the device was free; then it is held. The kernel lets it go when the process ends, however that is."""
    with ExitStack() as opened:
        try:
            file = opened.enter_context((LOCKS / f"nothing-gpt-gpu-{device}.lock").open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another's
            return False
        held.push(opened.pop_all())
        return True
