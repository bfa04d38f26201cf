"""Modal's side, as `place.kind=modal` uses it: a function that trains, and a vLLM that serves the starting adapter.

    modal secret create hf-secret HF_TOKEN=...
    modal secret create wandb-secret WANDB_API_KEY=...       # W&B without a key: WANDB_MODE=offline
    modal secret create serve-secret VLLM_API_KEY=...        # what SERVE_API_KEY is on this side
    modal volume create nothing-gpt
    modal volume put nothing-gpt ADAPTER /adapters/nothing-gpt-sft
    BASE_MODEL=... BASE_REVISION=... modal deploy deployments/modal_app.py

vLLM is then at https://WORKSPACE--nothing-gpt-serve.modal.run/v1; ADAPTER_PATH names another adapter on the volume,
mounted at /vol. A container sees what is on the volume when it starts, so an adapter put there later wants a new one.
With place.modal.serve_url, promotions deploy this app with what they promote.
This has not been run against Modal itself.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import modal

if TYPE_CHECKING:
    from nothing_gpt.jobs.modal_worker import Order, Outcome

NAME = "nothing-gpt"
"""Of the app and of the volume: the defaults of `place.modal`."""
ROOT = Path("/vol")
SCRATCH = Path("/tmp/nothing-gpt")
HUB = "/root/.cache/huggingface"
GPU = "L4"
VLLM = "vllm==0.32.0"
"""The version of locks/server.txt, whose own build is for CPUs."""
PORT = 8000
MINUTES = 60
LOCKS = Path(__file__).parent.parent / "locks"

app = modal.App(NAME)
volume = modal.Volume.from_name(NAME, create_if_missing=True)
hub = modal.Volume.from_name(f"{NAME}-hub", create_if_missing=True)
hf_secret = modal.Secret.from_name("hf-secret")

train_image = (
    modal.Image.debian_slim("3.11")
    .apt_install("gcc", "libc6-dev")  # triton compiles its driver at first use
    .pip_install_from_requirements(str(LOCKS / "train.txt"), extra_options="--no-deps")
    .add_local_python_source("nothing_gpt")
)
serve_image = (
    modal.Image.debian_slim("3.12")
    .pip_install(VLLM)
    .env({name: os.environ[name] for name in ("BASE_MODEL", "BASE_REVISION", "ADAPTER_PATH") if name in os.environ})
    .add_local_python_source("nothing_gpt")
)


@app.function(
    image=train_image,
    gpu=GPU,
    volumes={str(ROOT): volume, HUB: hub},
    secrets=[hf_secret, modal.Secret.from_name("wandb-secret")],
    timeout=6 * 60 * MINUTES,  # of one try
    retries=modal.Retries(max_retries=8, initial_delay=10.0),  # when interrupted or out of time
    single_use_containers=True,
)
def train(order: "Order") -> "Outcome":
    """One training, from the volume to the volume; called again, it goes on from its checkpoints there."""
    from nothing_gpt.jobs.modal_worker import work

    volume.reload()
    return work(order, ROOT, SCRATCH, volume.commit)


@app.function(
    image=serve_image,
    gpu=GPU,
    volumes={str(ROOT): volume, HUB: hub},
    secrets=[hf_secret, modal.Secret.from_name("serve-secret", required_keys=["VLLM_API_KEY"])],
    timeout=24 * 60 * MINUTES,
    scaledown_window=15 * MINUTES,
    max_containers=1,  # an adapter that is loaded while it runs is loaded in one container
)
@modal.concurrent(max_inputs=128)
@modal.web_server(PORT, startup_timeout=20 * MINUTES)
def serve() -> None:
    """The vLLM of `nothing_gpt/serve/server.py`, where adapters may be loaded while it runs; it wants the API key."""
    command = [sys.executable, "-m", "nothing_gpt.serve.server", "--host=0.0.0.0", f"--port={PORT}"]
    command += ["--max-model-len=4096", "--max-loras=3"]
    if revision := os.environ.get("BASE_REVISION"):
        command.append(f"--revision={revision}")
    subprocess.Popen(command)
