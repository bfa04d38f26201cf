"""A real vLLM of our own on this machine's CPU, for the embedded chain: started, awaited, ended.

It serves one base model, and adapters that come and go at run time (`vllm_admin.VLLM`). Nothing here is for
production, where `serve/server.py` gives the command. vLLM needs other versions of our libraries than we do,
so it lives in an environment of its own (`make server-env`); NOTHING_GPT_SERVER_PYTHON names its Python.
"""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from nothing_gpt.errors import FatalError, NothingGPTError
from nothing_gpt.processes import Child, free_port
from nothing_gpt.progress import say
from nothing_gpt.vllm_admin import VLLM

SERVER_PYTHON = "NOTHING_GPT_SERVER_PYTHON"
# The SFT adapter, the candidate and the promoted one are in memory together.
MAX_ADAPTERS = 3
PROGRESS_EVERY_S = 10.0
# An exception's last line, also within one of vLLM's log lines, or a complaint about the command line.
ERROR = re.compile(r"\b([\w.]*(Error|Exception)|error): \S.*")

ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # The worker runs inside the engine's process: one import of vLLM (about 8 s of a core) and 600 MB less.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Layers this small lose by sharing work: two threads were 6 times slower on two busy cores.
    "OMP_NUM_THREADS": "1",
}


def server_python() -> Path:
    """The server environment's Python: NOTHING_GPT_SERVER_PYTHON, or `.venv-server` in the current folder."""
    python = Path(os.environ.get(SERVER_PYTHON) or Path.cwd() / ".venv-server" / "bin" / "python")
    if not python.exists():
        raise FatalError(f"no vLLM: {python} does not exist; run `make server-env`, or set {SERVER_PYTHON}")
    return python


class LocalVLLM:
    """Serves `model` under the name `served_name` while the `with` block runs; its output goes to `log`.

    `port` 0 takes a free one. `max_lora_rank` is one of 1, 8, 16, 32, 64, 128, 256, 320, 512; choose the
    smallest that holds the adapters, as on a CPU every token pays for all of it. `progress` gets a line of
    news now and then until the server is ready. Raises FatalError if the server's environment is missing, or,
    with the line of its log that says why, if the server ends at its start; TransientError on `timeout_s`.
    """

    def __init__(
        self,
        model: Path,
        log: Path,
        *,
        served_name: str = "base",
        port: int = 0,
        max_model_len: int = 4096,
        max_lora_rank: int = 16,
        max_num_seqs: int = 128,
        timeout_s: float = 300,
        progress: Callable[[str], None] = say,
    ) -> None:
        self.model, self.log = model, log
        self.port = port or free_port()
        self.timeout_s, self.progress = timeout_s, progress
        self._arguments = [
            f"--model={model}",
            f"--served-model-name={served_name}",
            "--host=127.0.0.1",
            f"--port={self.port}",
            "--dtype=float32",
            f"--max-model-len={max_model_len}",
            f"--max-num-seqs={max_num_seqs}",
            # A seeded request whose prompt is split over two steps ends the CPU engine of vLLM 0.32 ("CPU
            # Generator does not use offset"), so no prompt is split.
            "--no-enable-chunked-prefill",
            f"--max-num-batched-tokens={max(max_model_len, 8192)}",
            "--kv-cache-memory-bytes=256M",
            "--enforce-eager",
            "--enable-lora",
            f"--max-loras={MAX_ADAPTERS}",
            f"--max-lora-rank={max_lora_rank}",
            "--disable-log-stats",
        ]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        # `python -m`: the `vllm` script looks for a distribution of that name, which the CPU build is not.
        command = [str(server_python()), "-m", "vllm.entrypoints.openai.api_server", *self._arguments]
        if VLLM(self.base_url).health():
            raise FatalError(f"another server answers at {self.base_url}; choose another port, or 0 for a free one")
        started = reported = time.monotonic()

        def alive() -> bool:
            nonlocal reported
            if (now := time.monotonic()) - reported >= PROGRESS_EVERY_S:
                reported = now
                self.progress(f"vLLM is starting, {now - started:.0f} s")
            return self._child.running

        self._child = Child(command, self.log, env=ENVIRONMENT)
        try:
            VLLM(self.base_url).wait_until_healthy(self.timeout_s, alive)
        except NothingGPTError as error:
            self._child.stop()
            reason = _reason(self._child.tail(200)) if isinstance(error, FatalError) else str(error)
            raise type(error)(f"vLLM did not start: {reason}; see {self.log}") from None
        except BaseException:
            self._child.stop()
            raise
        self.progress(f"vLLM is ready after {time.monotonic() - started:.0f} s at {self.base_url}")
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()


def _reason(lines: list[str]) -> str:
    """What in vLLM's log says why it ended: the first error, as later ones are its consequences."""
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        if error := ERROR.search(line):
            return f"{error[0]} {following.strip()}" if "validation error" in line else error[0]
    return lines[-1] if lines else "it wrote nothing to its log"
