"""An adapter's files: their digest, what makes them servable, how far one adapter is from another, where one may stand.

Tensors are read without torch, which the machine of a flow that trains elsewhere does not have.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from nothing_gpt.errors import FatalError
from nothing_gpt.records import digest, file_digest
from nothing_gpt.store import reporting_disk

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
METRICS = "metrics.json"
"""Beside an adapter that was trained here: what training measured."""
TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Types of an adapter's numbers, and how NumPy reads each."""
MARGINS = "margins.jsonl"
"""Beside it too: `{pair, margin}`, each validation pair's id and the reward margin that training gave it."""
LEFT_BY_TRAINING = {CONFIG, WEIGHTS, METRICS, MARGINS, "steps.jsonl", "tracking", "manifest.json"}
"""What a folder holds that training published, on its own or as an artifact."""
PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Ways to begin an adapter that leave the base model's weights as they are."""
UNSERVED: dict[str, Callable[[Any], object]] = {
    "use_dora": bool,
    "modules_to_save": bool,
    "lora_bias": bool,
    "layer_replication": bool,
    "alora_invocation_tokens": bool,
    "use_qalora": bool,
    "use_bdlora": bool,
    "bias": lambda value: value not in (None, "none"),
    "init_lora_weights": lambda value: isinstance(value, str) and value.lower() not in PLAIN_INITS,
}
"""What a configuration may ask for beyond plain LoRA, and when vLLM refuses it (its lora/peft_helper.py)."""
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM's max_lora_rank may have; an adapter is served with the next one up."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that was found whole: its largest rank, name of its base, number of parameters."""

    rank: int
    base: str
    parameters: int


def base_name(folder: Path) -> str:
    """The base model that an adapter names: the folder or hub name that it was trained on.

    Raises:
        FatalError: it names none, or is no adapter.
    """
    name = _config(folder).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise FatalError(f"{folder / CONFIG}: names no base model; give it (BASE_MODEL, or place.base_model)")
    return name


def adapter_digest(folder: Path) -> str:
    """What an adapter is, whatever its folder or name: a digest of its weights and of its configuration.

    Raises:
        FatalError: a file is missing.
    """
    return digest({name: file_digest(_file(folder, name)) for name in (CONFIG, WEIGHTS)})


def save_adapter(model: "PeftModel", folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Writes a model's trained adapter as vLLM loads it: weights and configuration, and nothing else. `weights` are the
    model's where it does not have them all itself, for they are sharded.

    PEFT keeps the target modules as a set, whose order differs from run to run; sorted, equal adapters are equal files.
    """
    modules = model.peft_config["default"].target_modules  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(modules, set):
        model.peft_config["default"].target_modules = sorted(modules)  # pyright: ignore[reportAttributeAccessIssue]
    model.save_pretrained(str(folder), selected_adapters=["default"], state_dict=weights)
    for extra in folder.iterdir():
        if extra.name not in (CONFIG, WEIGHTS):
            extra.unlink()


def validate_adapter(folder: Path, base: Path | None = None) -> Adapter:
    """Checks that a LoRA adapter is whole, finite and servable by vLLM, and fits the base model where one is given.

    Raises:
        FatalError: a file is missing, cut or not an adapter's; a tensor holds NaN or infinity, has another rank than
            the configuration says, or lacks its other half; DoRA or another of `UNSERVED`; an adapter on the output
            head or for another task than text; shapes of another base.
    """
    config = _config(folder)
    for feature, refused in UNSERVED.items():
        if refused(config.get(feature)):
            raise FatalError(
                f"{folder / CONFIG}: {feature} is {config[feature]!r}, which vLLM cannot serve; give a plain LoRA"
            )
    rank, own_ranks = config.get("r"), config.get("rank_pattern") or {}
    if config.get("peft_type") != "LORA" or not isinstance(rank, int) or not isinstance(own_ranks, dict):
        raise FatalError(
            f"{folder / CONFIG}: not a LoRA adapter (peft_type {config.get('peft_type')!r}, r {rank!r}, rank_pattern "
            f"{own_ranks!r})"
        )
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
    ranks: set[int] = set()
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise FatalError(f"{folder / WEIGHTS}: {name} holds NaN or infinity; this adapter must not be served")
        side = next((side for side in ("lora_A", "lora_B") if f".{side}." in name), None)
        if side is None or tensor.ndim != 2:
            raise FatalError(f"{folder / WEIGHTS}: {name} is no LoRA matrix; train a plain LoRA adapter")
        if ".lm_head." in name:  # the loss takes the head's weights and does not call it, so this would not be trained
            raise FatalError(f"{folder / WEIGHTS}: {name}: lm_head cannot be trained; give an adapter without it")
        module = name.removeprefix("base_model.model.").partition(f".{side}.")[0]
        found, said = tensor.shape[0 if side == "lora_A" else 1], _own(own_ranks, module) or rank
        ranks.add(found)
        if found != said:
            raise FatalError(
                f"{folder / WEIGHTS}: {name} has rank {found}, but by r and rank_pattern of {CONFIG} it has {said}: "
                "the two files are not of one adapter; make it again"
            )
        other = "lora_B" if side == "lora_A" else "lora_A"
        if name.replace(f".{side}.", f".{other}.") not in tensors:
            raise FatalError(f"{folder / WEIGHTS}: {name} has no {other} beside it; a part is lost, make it again")
        if shapes is not None:
            expected = shapes.get(f"{module}.weight")
            if expected is None or tensor.shape[1 if side == "lora_A" else 0] != expected[1 if side == "lora_A" else 0]:
                raise FatalError(
                    f"{folder}: made for another base model ({config.get('base_model_name_or_path')}): "
                    f"{name} does not fit {base}"
                )
    if max(ranks) > SERVED_RANKS[-1]:
        raise FatalError(f"{folder / WEIGHTS}: rank {max(ranks)}; vLLM serves ranks up to {SERVED_RANKS[-1]}")
    return Adapter(max(ranks), str(config.get("base_model_name_or_path")), sum(t.size for t in tensors.values()))


def changed_share(before: Path, after: Path) -> float:
    """Share (0 to 1) of the elements that differ between two adapters of one shape.

    Raises:
        FatalError: a file is missing or cut, or the two do not have the same tensors.
    """
    old, new = _tensors(before), _tensors(after)
    if {name: t.shape for name, t in old.items()} != {name: t.shape for name, t in new.items()}:
        raise FatalError(f"{after}: its tensors are not those of {before}; they cannot be compared")
    changed = sum(int((old[name] != new[name].astype(old[name].dtype)).sum()) for name in old)
    return changed / sum(tensor.size for tensor in old.values())


def check_output(output: Path, *inputs: Path, name: str = "ADAPTER_PATH") -> Path:
    """The folder, links followed, that an adapter is to stand in: a new or empty one, or an earlier adapter of ours,
    which it replaces. What does not do is found now and not after hours.

    Raises:
        FatalError: no folder can come to stand there, or the one that does is or contains an input, or holds anything
            else. `name` is what named it.
    """
    output = output.resolve()
    there = next(path for path in (output, *output.parents) if path.exists())
    if not there.is_dir():
        raise FatalError(f"{name}: {there} is a file; give the path of a folder, which need not exist yet")
    for path in inputs:
        if output in (path.resolve(), *path.resolve().parents):
            raise FatalError(f"{name}: {output} is to be replaced, and {path} in it is read; give a new folder")
    if output.is_mount():
        raise FatalError(f"{name}: {output} is a mount point, which cannot be replaced; give a folder in it")
    found = {path.name for path in output.iterdir()} if output.exists() else set()
    if found and not {CONFIG, METRICS} <= found <= LEFT_BY_TRAINING:
        raise FatalError(f"{name}: {output} holds something else than an adapter trained here; give a new folder")
    return output


def publish(finished: Path, output: Path) -> None:
    """Copies what is finished to where it is wanted; the folder appears whole or not at all."""
    with reporting_disk(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            whole = Path(scratch) / "adapter"
            shutil.copytree(finished, whole)
            shutil.rmtree(output, ignore_errors=True)
            whole.replace(output)


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


def _own(patterns: dict[str, int], module: str) -> int | None:
    """What a module has of its own, by PEFT's rule: of the first pattern that its name ends with."""
    return next((value for name, value in patterns.items() if re.match(rf"(.*\.)?({name})$", module)), None)


def _tensors(folder: Path) -> dict[str, "np.ndarray[Any, Any]"]:
    path = _file(folder, WEIGHTS)
    try:
        tensors = {name: _array(tensor) for name, tensor in sorted(deserialize(path.read_bytes()))}
    except (SafetensorError, OSError) as error:
        raise FatalError(f"{path}: cannot be read ({error}); the file is cut or damaged, make it again") from None
    except KeyError as error:
        raise FatalError(f"{path}: holds numbers of type {error}; give one of {', '.join(TYPES)}") from None
    if not tensors:
        raise FatalError(f"{path}: holds no tensors; make the adapter again")
    return tensors


def _array(tensor: Mapping[str, Any]) -> "np.ndarray[Any, Any]":
    """A tensor of a safetensors file. NumPy has no bfloat16: it is the upper half of a float32, and becomes one."""
    values = np.frombuffer(tensor["data"], TYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return (values.astype("<u4") << 16).view("<f4") if tensor["dtype"] == "BF16" else values


def _base_shapes(base: Path) -> dict[str, list[int]] | None:
    """Shapes of the base's weights, read from the files' headers; None where the base has no local safetensors."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(base.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise FatalError(
                f"{path}: cannot be read ({error}); the base model's weights are cut or damaged, download them again"
            ) from None
    return shapes or None
