"""The policy that is trained: a base model, frozen, with the starting adapter on it, trainable and in float32.

It imports torch and all that where it loads something, so that looking at it costs nothing.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nothing_gpt.adapters import CONFIG, WEIGHTS
from nothing_gpt.errors import FatalError
from nothing_gpt.training_figures import is_out_of_memory

if TYPE_CHECKING:
    from peft import PeftModel


def load_tokenizer(base: str, revision: str | None) -> Any:
    """The base model's tokenizer.

    Raises:
        FatalError: there is no such model, or it may not be downloaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base, revision=revision)
    except (OSError, ValueError) as error:
        raise _cannot_load(base, revision, error) from None


def vocabulary(base: str, revision: str | None) -> int:
    """How many tokens the base model knows: their ids are below that.

    Raises:
        FatalError: as `load_tokenizer`.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(base, revision=revision)
    except (OSError, ValueError) as error:
        raise _cannot_load(base, revision, error) from None
    return config.get_text_config().vocab_size


def check_device(quantization: str) -> None:
    """Raises FatalError where nf4 is asked for and there is no CUDA device: a CPU gains nothing by it."""
    import torch

    if quantization == "nf4" and not torch.cuda.is_available():
        raise FatalError("training.quantization: nf4 needs a CUDA device, and there is none; set it to none")


def load_policy(
    base: str, revision: str | None, start: Path, quantization: str, bf16: bool = True, sharded: bool = False
) -> "PeftModel":
    """The base model in bfloat16 on a CUDA device (with `bf16`, else as on a CPU), in float32 on a CPU, or in 4 bits
    (`nf4`: NF4, double quantisation, bfloat16 arithmetic), with the adapter in `start`, trainable. It is given batches
    of pairs alone, and computes a pair's prompt once where its type allows that.

    Raises:
        FatalError: no such model or a damaged one, or an adapter that does not fit it or is not whole.
    """
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from nothing_gpt.pair_batches import share_prompts

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_storage=torch.bfloat16 if sharded else torch.uint8,  # the same bits, as FSDP wants them
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base,
            revision=revision,
            dtype=torch.bfloat16 if bf16 and torch.cuda.is_available() else torch.float32,
            quantization_config=four_bits if quantization == "nf4" else None,
        )
    except SafetensorError as error:
        raise FatalError(
            f"train: the weights of the base model {base} are cut or damaged ({error}); download them again"
        ) from None
    except (OSError, ValueError) as error:
        raise _cannot_load(base, revision, error) from None
    share_prompts(model)
    try:
        policy = PeftModel.from_pretrained(model, str(start), is_trainable=True)
    except (RuntimeError, ValueError) as error:  # other shapes; no such modules
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[-1].strip()
        raise FatalError(f"{start}: made for another base model than {base} ({reason})") from None
    _check_whole(policy, start)
    return policy


def train_in_float32(policy: Any) -> None:
    """Makes the trainable parameters float32: on a 4-bit base TRL casts them to bfloat16, where updates of the usual
    size round away. Their values come from TRL's frozen copy, `ref`, for the cast rounded them already: the policy
    would not begin as its reference, and an adapter that learned nothing would have changed."""
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            parameter.data = policy.get_parameter(name.replace(".default.", ".ref.")).data.float().clone()


def _check_whole(policy: "PeftModel", start: Path) -> None:
    """Refuses an adapter whose file lacks a tensor of what its configuration says, or has one more: PEFT makes up the
    first and drops the second, and what is trained would not be what was given."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(start / WEIGHTS, framework="pt") as file:
        given = set(file.keys())
    wanted = set(get_peft_model_state_dict(policy, save_embedding_layers=False))
    if given != wanted:
        first = min(given ^ wanted)
        raise FatalError(
            f"{start / WEIGHTS}: {len(wanted - given)} of the {len(wanted)} tensors that {CONFIG} calls for are "
            f"missing, and {len(given - wanted)} are too many (the first: {first}); make the adapter again"
        )


def _cannot_load(base: str, revision: str | None, error: Exception) -> FatalError:
    reason = str(error).strip().splitlines()[0]
    what = base if revision is None else f"{base} at {revision}"
    return FatalError(
        f"train: the base model {what} cannot be loaded ({reason}); check its name, and HF_TOKEN if it is private"
    )
