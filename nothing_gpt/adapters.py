"""An adapter's files: their digest, what makes them servable, and how far one adapter is from another.

Torch is imported where tensors are read, so that a flow that only passes adapters on does not pay for it.
"""

import json
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nothing_gpt.errors import FatalError
from nothing_gpt.records import digest, file_digest

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM's max_lora_rank may have; an adapter is served with the next one up."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that was found whole: rank `r`, name of its base, number of parameters."""

    rank: int
    base: str
    parameters: int


@dataclass(frozen=True)
class Base:
    """A base model: a folder or hub name to load it from, what it is, whatever its address, a hub model's commit."""

    location: str
    identity: str
    revision: str | None = None


def adapter_digest(folder: Path) -> str:
    """What an adapter is, whatever its folder or name: a digest of its weights and of its configuration.

    Raises:
        FatalError: a file is missing.
    """
    return digest({name: file_digest(_file(folder, name)) for name in (CONFIG, WEIGHTS)})


def save_adapter(model: "PeftModel", folder: Path) -> None:
    """Writes a model's trained adapter as vLLM loads it: weights and configuration, and nothing else.

    PEFT keeps the target modules as a set, whose order differs from run to run; sorted, equal adapters are equal files.
    """
    modules = model.peft_config["default"].target_modules  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(modules, set):
        model.peft_config["default"].target_modules = sorted(modules)  # pyright: ignore[reportAttributeAccessIssue]
    model.save_pretrained(str(folder), selected_adapters=["default"])
    for extra in folder.iterdir():
        if extra.name not in (CONFIG, WEIGHTS):
            extra.unlink()


def validate_adapter(folder: Path, base: Path | None = None) -> Adapter:
    """Checks that a LoRA adapter is whole, finite and servable by vLLM, and fits the base model where one is given.

    Raises:
        FatalError: a file is missing, cut or not an adapter's; a tensor holds NaN or infinity, has another rank than
            the configuration says, or lacks its other half; DoRA, `modules_to_save`, an adapter on the output head or
            for another task than text; shapes of another base.
    """
    config = _config(folder)
    for feature in ("use_dora", "modules_to_save"):
        if config.get(feature):
            raise FatalError(
                f"{folder / CONFIG}: {feature} is set, which vLLM cannot serve; train a plain LoRA adapter"
            )
    rank = config.get("r")
    if config.get("peft_type") != "LORA" or not isinstance(rank, int):
        raise FatalError(f"{folder / CONFIG}: not a LoRA adapter (peft_type {config.get('peft_type')!r}, r {rank!r})")
    for name in ("r", "lora_alpha"):
        value = config.get(name, 1)  # a configuration may leave lora_alpha to PEFT
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < inf:
            raise FatalError(f"{folder / CONFIG}: {name} is {value!r}, and must be a number above 0; make it again")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise FatalError(
            f"{folder / CONFIG}: task_type is {config['task_type']!r}; give an adapter that writes text (CAUSAL_LM)"
        )
    shapes = _base_shapes(base) if base else None
    tensors = _tensors(folder)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FatalError(f"{folder / WEIGHTS}: {name} holds NaN or infinity; this adapter must not be served")
        side = next((side for side in ("lora_A", "lora_B") if f".{side}." in name), None)
        if side is None or tensor.ndim != 2:
            raise FatalError(f"{folder / WEIGHTS}: {name} is no LoRA matrix; train a plain LoRA adapter")
        if ".lm_head." in name:  # the loss takes the head's weights and does not call it, so this would not be trained
            raise FatalError(f"{folder / WEIGHTS}: {name}: lm_head cannot be trained; give an adapter without it")
        if tensor.shape[0 if side == "lora_A" else 1] != rank:
            raise FatalError(f"{folder / WEIGHTS}: {name} has shape {tuple(tensor.shape)}, but {CONFIG} says r={rank}")
        other = "lora_B" if side == "lora_A" else "lora_A"
        if name.replace(f".{side}.", f".{other}.") not in tensors:
            raise FatalError(f"{folder / WEIGHTS}: {name} has no {other} beside it; a part is lost, make it again")
        if shapes is not None:
            target = name.removeprefix("base_model.model.").partition(f".{side}.")[0] + ".weight"
            expected = shapes.get(target)
            if expected is None or tensor.shape[1 if side == "lora_A" else 0] != expected[1 if side == "lora_A" else 0]:
                raise FatalError(
                    f"{folder}: made for another base model ({config.get('base_model_name_or_path')}): "
                    f"{name} does not fit {base}"
                )
    return Adapter(rank, str(config.get("base_model_name_or_path")), sum(t.numel() for t in tensors.values()))


def changed_share(before: Path, after: Path) -> float:
    """Share (0 to 1) of the elements that differ between two adapters of one shape.

    Raises:
        FatalError: a file is missing or cut, or the two do not have the same tensors.
    """
    old, new = _tensors(before), _tensors(after)
    if {name: t.shape for name, t in old.items()} != {name: t.shape for name, t in new.items()}:
        raise FatalError(f"{after}: its tensors are not those of {before}; they cannot be compared")
    changed = sum(int((old[name] != new[name].to(old[name].dtype)).sum()) for name in old)
    return changed / sum(tensor.numel() for tensor in old.values())


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise FatalError(f"{folder}: not an adapter, {name} is missing; give the folder that save_pretrained wrote")
    return folder / name


def _config(folder: Path) -> dict[str, Any]:
    path = _file(folder, CONFIG)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise FatalError(f"{path}: not a JSON object; the adapter is damaged, make it again") from None


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _file(folder, WEIGHTS)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise FatalError(f"{path}: cannot be read ({error}); the file is cut or damaged, make it again") from None
    if not tensors:
        raise FatalError(f"{path}: holds no tensors; make the adapter again")
    return tensors


def _base_shapes(base: Path) -> dict[str, list[int]] | None:
    """Shapes of the base's weights, read from the files' headers; None where the base has no local safetensors."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for path in sorted(base.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise FatalError(
                f"{path}: cannot be read ({error}); the base model's weights are cut or damaged, download them again"
            ) from None
    return shapes or None
