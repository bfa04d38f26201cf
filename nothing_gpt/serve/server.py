"""The vLLM command that serves an adapter under the stable name, ready for adapters to be loaded while it runs.

    BASE_MODEL=... ADAPTER_PATH=... python -m nothing_gpt.serve.server [vLLM's own options]

becomes vLLM, in whose environment it must run. The embedded place starts its small server by itself.
"""

import json
import os
import sys
from pathlib import Path

from nothing_gpt.adapters import CONFIG, SERVED_RANKS
from nothing_gpt.config import Environment, SamplingSettings
from nothing_gpt.errors import FatalError, exits_cleanly

MAX_NUM_SEQS = 32


def command(base: str, adapter: Path, name: str) -> list[str]:
    """The command line; it wants VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment.

    Raises:
        FatalError: the adapter cannot be read, or its rank is above what vLLM serves.
    """
    try:
        config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
        rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FatalError(f"{adapter}: not an adapter ({CONFIG} cannot be read); check ADAPTER_PATH") from None
    served = next((size for size in SERVED_RANKS if size >= rank), None)
    if served is None:
        raise FatalError(f"{adapter}: rank {rank} is above {SERVED_RANKS[-1]}, the most that vLLM serves")
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={base}", "--enable-lora",
            f"--max-lora-rank={served}", f"--max-num-seqs={MAX_NUM_SEQS}",
            "--lora-modules", json.dumps({"name": name, "path": str(adapter)})]  # fmt: skip


@exits_cleanly
def main() -> None:
    """Replaces this process by vLLM."""
    environment = Environment()
    if not environment.base_model:
        raise FatalError("BASE_MODEL is not set; name the base model that the adapter belongs to")
    os.environ.setdefault("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
    # A link to the current adapter may point elsewhere tomorrow; what is served says which adapter it is.
    line = command(environment.base_model, environment.adapter_path.resolve(), SamplingSettings().model)
    os.execvp(line[0], [*line, *sys.argv[1:]])


if __name__ == "__main__":
    main()
