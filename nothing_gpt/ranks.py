"""A training as several processes, its *ranks*: what one of them knows of the others, and what they agree on.

torchrun's agent (`launcher.py`) starts them and says in the environment who is who. A process that it did not start is
rank 0 of 1, for which all that is here is a matter of course. torch is imported where there are others.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nothing_gpt.errors import TransientError, stop_at_once
from nothing_gpt.processes import die_with_parent

ENDPOINT = "PET_RDZV_ENDPOINT"
"""Variable with HOST:PORT of a group's first machine; torchrun's own name."""
ADDRESS = "PET_LOCAL_ADDR"
"""Variable with a machine's own address, where its name is not to be asked for; torchrun's name too. The agents number
their machines in the order of these."""
INDEX = "JOB_COMPLETION_INDEX"
"""Variable with a machine's place in its group, from 0, as a Kubernetes Indexed Job sets it."""
AGENT = "NOTHING_GPT_AGENT"
"""Variable with the id of the agent that started a rank."""
SETTLE_S = 3.0
"""A rank that lost another waits so long with its end: which one the agent sees end first says what went wrong."""


def is_rank() -> bool:
    """Whether an agent started this process as one of a group."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def end_with_agent() -> None:
    """Has this rank end when its agent does: it is in a session of its own, which no leash reaches."""
    die_with_parent(int(os.environ[AGENT]))


def is_first_machine() -> bool:
    """Whether a group meets here: on the only machine, or on the first of several."""
    return os.environ.get(INDEX, "0") == "0"


def count() -> int:
    """How many ranks there are on all machines."""
    return _said("WORLD_SIZE", 1)


def is_first() -> bool:
    """Whether this is the rank that talks, keeps checkpoints and publishes."""
    return number() == 0


def number() -> int:
    """This rank's own, from 0."""
    return _said("RANK", 0)


def is_first_here() -> bool:
    """Whether this is the first rank on its machine, which prepares what all there share."""
    return _said("LOCAL_RANK", 0) == 0


@contextmanager
def joined() -> Iterator[None]:
    """Meets the other ranks (NCCL between GPUs, gloo between CPUs), for as long as the block lasts.

    Raises:
        TransientError: another rank is gone.
    """
    if not is_rank():
        yield
        return
    import torch
    from torch import distributed

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(_said("LOCAL_RANK", 0))
    try:
        # gloo beside NCCL: what is agreed on here is numbers of the CPU.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        yield
        distributed.destroy_process_group()  # not upon an error: the others would end before us, and be blamed
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and not any(sign in str(error) for sign in ("gloo", "NCCL")):
            raise
        signal.signal(signal.SIGTERM, stop_at_once)
        time.sleep(SETTLE_S)
        reason = str(error).splitlines()[0]
        raise TransientError(f"train: another process of the group is gone ({reason}); run again to go on") from None


def anyone(wish: bool) -> bool:
    """Whether any rank wishes it. All ranks must ask."""
    return _agreed(int(wish), "MAX") > 0


def least(mine: int) -> int:
    """The least of all ranks' numbers. All ranks must ask."""
    return _agreed(mine, "MIN")


def meet() -> None:
    """Returns when all ranks have come here."""
    _agreed(0, "MIN")


@contextmanager
def first_here_first() -> Iterator[None]:
    """The block is run by each machine's first rank, and then by its others."""
    if not is_first_here():
        meet()
    yield
    if is_first_here():
        meet()


def _agreed(mine: int, how: str) -> int:
    if count() == 1:
        return mine
    import torch
    from torch import distributed

    numbers = torch.tensor([mine])
    distributed.all_reduce(numbers, getattr(distributed.ReduceOp, how))
    return int(numbers)


def _said(name: str, otherwise: int) -> int:
    return int(os.environ[name]) if is_rank() else otherwise
