"""Keys kept in Prefect's Secret blocks, for machines whose environment has none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.blocks.system import Secret

SECRETS = ("OPENAI_API_KEY", "SERVE_API_KEY", "HF_TOKEN", "WANDB_API_KEY")


@contextmanager
def secrets_from_blocks() -> Iterator[None]:
    """Puts each secret that the environment lacks into it, for this run and its children, from the Secret block of its
    name in lower case with dashes (`openai-api-key`), where there is one."""
    found: list[str] = []
    for name in SECRETS:
        if name not in os.environ:
            try:
                block: Any = Secret.load(name.lower().replace("_", "-"))
            except ValueError:  # no such block
                continue
            os.environ[name] = str(block.get())
            found.append(name)
    try:
        yield
    finally:
        for name in found:
            del os.environ[name]
