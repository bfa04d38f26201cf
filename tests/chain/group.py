"""The training program for the tests of a group: in it a rank ends, or the group is asked to stop, at a given step, and
the model is sharded if they want that.

GROUP_TEST holds `SCENE` as JSON. What happens does so once: `once` is a file that is there from then on.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Required, TypedDict

from nothing_gpt import launcher
from nothing_gpt.dpo import train
from nothing_gpt.store import Store, open_store

VARIABLE = "GROUP_TEST"


class Scene(TypedDict, total=False):
    once: Required[str]
    killed_before: int
    """The step before which the second rank ends by SIGKILL."""
    with_agent: bool
    """Its agent does, and it with that."""
    asked_in: int
    """The step in which the agent is asked to stop; the ranks go on only when it has passed that on."""
    sharded: bool


def play(scene: Scene) -> None:
    """Changes what a rank does, as `scene` says."""
    from nothing_gpt.trainers import Survive

    begin = Survive.on_step_begin

    def begin_or_end(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        begin(self, args, state, control, **more)
        step, once = state.global_step + 1, Path(scene["once"])
        if os.environ["RANK"] == "1" and step == scene.get("killed_before") and not once.exists():
            once.touch()
            os.kill(os.getppid() if scene.get("with_agent") else os.getpid(), signal.SIGKILL)
            signal.pause()
        if os.environ["RANK"] == "0" and step == scene.get("asked_in") and not once.exists():
            once.touch()
            os.kill(os.getppid(), signal.SIGTERM)
            while not self.asked:
                time.sleep(0.01)

    Survive.on_step_begin = begin_or_end
    if os.environ["RANK"] != "0":
        train.open_store = read_only
    if scene.get("sharded"):
        shard()


def read_only(address: str) -> Store:
    """A store to which a rank that writes to it ends."""

    def refuse(*_: Any) -> None:
        raise AssertionError("another rank than the first writes to the store")

    store = open_store(address)
    for name in ("write", "upload", "delete"):
        setattr(store, name, refuse)
    return store


def shard() -> None:
    """FSDP without a GPU, which accelerate knows on none but an accelerator, and with the 4 bits that it has there."""
    from accelerate.state import AcceleratorState, DistributedType

    from nothing_gpt import sharding
    from nothing_gpt.dpo import recipe

    init = AcceleratorState.__init__

    def on_cpus(self: Any, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        init(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
        if "fsdp_plugin" in vars(self):
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = on_cpus
    sharding._needs_sharding = lambda *_: True  # pyright: ignore[reportPrivateUsage]
    recipe.check_device = lambda *_: None
    keep_four_bits()


def keep_four_bits() -> None:
    """bitsandbytes would repack a weight in place for a CPU's evaluation, and a shard of it is then another."""
    from bitsandbytes.nn import modules

    setattr(modules, "has_avx512bf16", lambda: False)  # noqa: B010 (it is private to that module)


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        play(json.loads(os.environ[VARIABLE]))
    else:  # the agent, whose ranks are this program too
        launch = launcher.launch
        launcher.launch = lambda command, *group: launch([sys.executable, __file__, *command[4:]], *group)
    train.main()
