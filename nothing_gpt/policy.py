"""The policy that is trained: a base model, frozen, with the starting adapter on it, trainable and in float32.

It imports torch and all that where it loads something, so that looking at it costs nothing.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nothing_gpt.errors import FatalError

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


def load_policy(base: str, revision: str | None, start: Path, quantization: str) -> "PeftModel":
    """The base model in bfloat16 on a CUDA device, in float32 on a CPU, or in 4 bits (`nf4`: NF4, double
    quantisation, bfloat16 arithmetic), with the adapter in `start`, trainable. It is given batches of pairs alone, and
    computes a pair's prompt once where its type allows that.

    Raises:
        FatalError: nf4 without a CUDA device, no such model, or an adapter that does not fit it.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from nothing_gpt.pair_batches import SHARING, share_prompts

    cuda = torch.cuda.is_available()
    if quantization == "nf4" and not cuda:
        raise FatalError("training.quantization: nf4 needs a CUDA device, and there is none; set it to none")
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base,
            revision=revision,
            dtype=torch.bfloat16 if cuda else torch.float32,
            quantization_config=four_bits if quantization == "nf4" else None,
        )
    except (OSError, ValueError) as error:
        raise _cannot_load(base, revision, error) from None
    if model.config.model_type in SHARING:
        share_prompts(model)
    try:
        return PeftModel.from_pretrained(model, str(start), is_trainable=True)
    except (RuntimeError, ValueError) as error:  # other shapes; no such modules
        reason = str(error).strip().splitlines()[-1].strip()
        raise FatalError(f"{start}: made for another base model than {base} ({reason})") from None


def train_in_float32(policy: Any) -> None:
    """Makes the trainable parameters float32: on a 4-bit base TRL casts them to bfloat16, where updates of the usual
    size round away."""
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _cannot_load(base: str, revision: str | None, error: Exception) -> FatalError:
    reason = str(error).strip().splitlines()[0]
    what = base if revision is None else f"{base} at {revision}"
    return FatalError(
        f"train: the base model {what} cannot be loaded ({reason}); check its name, and HF_TOKEN if it is private"
    )
