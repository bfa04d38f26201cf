"""What autograd keeps of a token in one layer of Llama-3.2-3B with its adapter, without gradient checkpointing.

    python -m benchmarks.activations

Counted on a CPU under bfloat16 autocast, as the difference between two layers and one, so that embedding, head and what
a batch has once fall out; attention is given a mask, as shared prompts need. The last line is KiB a token and layer.
"""

from dataclasses import asdict, replace

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaModel

from benchmarks.workload import SHAPES

TOKENS = 512


def kept_bytes(layers: int) -> int:
    """Bytes of all tensors that the backward pass of `TOKENS` tokens will need, but for the parameters."""
    sizes = asdict(replace(SHAPES["llama-3.2-3b"], num_hidden_layers=layers, vocab_size=8))
    rank = sizes.pop("rank")
    model = get_peft_model(
        LlamaModel(LlamaConfig(**sizes)).bfloat16(),
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"),
    )
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # the tensors too, lest another takes a freed one's address

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters and not _is_weight(tensor, rank):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    visible = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    places = torch.arange(TOKENS)[None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.zeros_like(places), position_ids=places, attention_mask=visible, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _is_weight(tensor: torch.Tensor, rank: int) -> bool:
    """Whether it is a matrix of the adapter, as autocast's copy of it."""
    return tensor.ndim == 2 and rank in tensor.shape and TOKENS not in tensor.shape


def main() -> None:
    print(f"{(kept_bytes(2) - kept_bytes(1)) / TOKENS / 1024:.0f}")


if __name__ == "__main__":
    main()
