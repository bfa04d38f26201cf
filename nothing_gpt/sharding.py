"""Does each GPU of a group hold the whole base model (DDP), or a part of each of its layers (FSDP)?

Chosen by size, so that no setting says it: DDP where it fits, for it sends only the adapter's gradients. The formula is
arithmetic, and nobody measured it. FSDP, also with NF4 (QLoRA, sharded), comes to what one process comes to on two CPUs
(`tests/chain/test_group.py`); it has been run on no GPU.
"""

import os
from typing import Any

from nothing_gpt import ranks
from nothing_gpt.config import TrainingSettings
from nothing_gpt.errors import FatalError

NF4_BYTES = 0.52
"""A parameter in 4 bits, with its share of the constants, which are quantised too (Dettmers et al. 2023)."""
SHARE = 2 / 3
"""Of a GPU's memory, for the base model. The rest is for activations, and for the adapter: 20 bytes a parameter of it
(float32: itself, its frozen copy, its gradient and AdamW's two moments), 1 GB for rank 32 on a model of 3B."""
FSDP = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "cpu_ram_efficient_loading": True,
        "state_dict_type": "FULL_STATE_DICT",
    },
    "precompute_ref_log_probs": False,  # TRL would do it before the model is sharded
}
"""Arguments of TRL's configuration."""


def is_sharded(parameters: int, settings: TrainingSettings, memory: int, processes: int) -> bool:
    """Whether a base model has to be sharded over `processes` GPUs of `memory` bytes each.

    Raises:
        FatalError: even so it does not fit.
    """
    dense = 2 if settings.bf16 else 4
    needed = parameters * (NF4_BYTES if settings.quantization == "nf4" else dense)
    if processes == 1 or needed <= memory * SHARE:
        return False
    if needed / processes > memory * SHARE:
        more = "" if settings.quantization == "nf4" else "training.quantization=nf4, or "
        raise FatalError(
            f"train: the base model takes {needed / 1e9:.0f} GB, and {processes} GPUs of {memory / 1e9:.0f} GB give it "
            f"{SHARE * processes * memory / 1e9:.0f}; set {more}more training.gpus or training.nodes"
        )
    return True


def arguments(base: str, revision: str | None, settings: TrainingSettings) -> dict[str, Any]:
    """`FSDP`, where this group needs it; then it is told the libraries too, which load the model accordingly. Raises
    as `is_sharded`."""
    if ranks.count() == 1 or not _needs_sharding(base, revision, settings):
        return {}
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    return FSDP


def _needs_sharding(base: str, revision: str | None, settings: TrainingSettings) -> bool:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not torch.cuda.is_available():
        return False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, revision=revision))
    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return is_sharded(model.num_parameters(), settings, memory, ranks.count())
