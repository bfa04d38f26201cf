"""A group of processes, started, watched and started again by torchrun's own agent, on one machine or on several.

    https://docs.pytorch.org/docs/stable/elastic/agent.html

Each machine runs one agent; they meet at the first one's address (PET_RDZV_ENDPOINT, as torchrun has it). When a
process ends, its agent starts its processes anew and the other agents theirs: the group begins again together, from
the last whole checkpoint. What no other try would mend ends the group.
"""

import os
import signal
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous

from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.progress import say
from nothing_gpt.ranks import ADDRESS, AGENT, ENDPOINT, is_first_machine

RESTARTS = 3
"""Of the group, by one agent; then whoever runs the agent tries again, or does not."""
JOIN_S = 1800
"""Longest wait for the other machines: spot nodes come one by one."""
FINAL = (FatalError.exit_code, 2)
"""Exit codes that no other try changes: bad settings or data, and bad arguments."""


class Agent(LocalElasticAgent):
    """torchrun's agent, which does not try again what cannot be mended so."""

    def _monitor_workers(self, *group: Any) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        result: Any = super()._monitor_workers(*group)
        if any(failure.exitcode in FINAL for failure in result.failures.values()):
            self._remaining_restarts = 0
        return result


def launch(command: Sequence[str], name: str, gpus: int, nodes: int) -> int:
    """Runs `command` as `gpus` processes here, of `gpus` x `nodes` in all; the exit code of the group: that of a
    process that cannot be mended, else of the first to fail; 75 where this process was asked to stop, 130 on Ctrl-C.

    `name` is the run's, the same on all machines.

    Raises:
        FatalError: several machines are wanted, and no address says where they meet; or there are too few GPUs here.
        TransientError: they do not meet.
    """
    endpoint = os.environ.get(ENDPOINT)
    if nodes > 1 and endpoint is None:
        raise FatalError(
            f"training.nodes={nodes}: this is one machine, and nothing says where the others are; set it to 1, or "
            "train with place.kind=gke"
        )
    if 0 < (devices := torch.cuda.device_count()) < gpus:
        raise FatalError(f"training.gpus={gpus}: this machine has {devices}; set it to {devices} or less")
    parameters = RendezvousParameters(
        "c10d", endpoint or "127.0.0.1:0", name, nodes, nodes,
        local_addr=os.environ.get(ADDRESS, None if endpoint else "127.0.0.1"),
        is_host=is_first_machine(), join_timeout=JOIN_S, read_timeout=JOIN_S,
    )  # fmt: skip
    os.environ[AGENT] = str(os.getpid())
    # The processes' own store anew at each start: in the agents' they would find addresses of those before them.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # As many threads as cores in each process would wait for one another most of the time.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // gpus)))
    if nodes > 1:
        say(f"train: meeting {nodes - 1} other machines at {endpoint}")
    with tempfile.TemporaryDirectory(prefix="nothing-gpt-ranks-") as logs:
        try:
            handler = rendezvous.get_rendezvous_handler(parameters)
            spec = WorkerSpec(
                "train", gpus, handler, entrypoint=command[0], args=tuple(command[1:]), max_restarts=RESTARTS,
                monitor_interval=0.2, local_addr=parameters.local_addr,
            )  # fmt: skip
            result: Any = Agent(spec, DefaultLogsSpecs(log_dir=logs)).run()
            handler.shutdown()
        except SignalException as asked:  # without `shutdown`: the others wait for us to come again
            return 128 + signal.SIGINT if asked.sigval == signal.SIGINT else TransientError.exit_code
        except RendezvousError as error:
            raise TransientError(f"train: the group's machines do not meet at {endpoint} ({error})") from None
    return _exit_code(result)


def _exit_code(result: RunResult) -> int:
    failures = sorted(result.failures.values(), key=lambda failure: (failure.exitcode not in FINAL, failure.timestamp))
    if not failures:
        return 0
    return failures[0].exitcode if failures[0].exitcode >= 0 else 128 - failures[0].exitcode
