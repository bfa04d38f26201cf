"""A training small enough for a test: a random Llama, an adapter on it, and pairs with a preference it can learn."""

import json
import random
from pathlib import Path
from typing import Any

from nothing_gpt.bases import known_base
from nothing_gpt.config import TrainingSettings
from nothing_gpt.dpo.recipe import Training, build_trainer
from nothing_gpt.dpo.train import fingerprint
from nothing_gpt.policy import load_tokenizer
from nothing_gpt.preferences import read_pairs
from nothing_gpt.store import Store

SETTINGS = TrainingSettings(
    learning_rate=5e-3, num_train_epochs=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
    per_device_eval_batch_size=2, eval_steps=4, save_steps=4, logging_steps=3, max_length=256, seed=1,
)  # fmt: skip
STEPS = 12
"""24 pairs, 4 an update, 2 epochs."""


def make(folder: Path, hidden_size: int = 32) -> Path:
    """A folder with `base`, `sft`, and `data`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from nothing_gpt.adapters import save_adapter
    from nothing_gpt.embedded.base import token_id, train_tokenizer

    rows = pairs(32)
    data = folder / "data"
    data.mkdir(parents=True)
    for name, part in (("train.jsonl", rows[:24]), ("val.jsonl", rows[24:])):
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    tokenizer = train_tokenizer([row["prompt"][0]["content"] + row["chosen"][0]["content"] for row in rows])
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=2 * hidden_size,
                    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512,
                    initializer_range=0.2, eos_token_id=token_id(tokenizer, "<|end|>"),
                    pad_token_id=token_id(tokenizer, "<|pad|>"))
    )  # fmt: skip
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    policy = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in policy.named_parameters():
        if "lora_B" in name:  # zeros would make the adapter the base model, and a wrong reference a right one
            torch.nn.init.normal_(weight, std=0.3)
    policy.peft_config["default"].base_model_name_or_path = str(folder / "base")
    save_adapter(policy, folder / "sft")
    return folder


def pairs(count: int) -> list[dict[str, Any]]:
    """In each the chosen side is a denial and the rejected one a consent."""
    dice = random.Random(0)
    words = ["tuba", "scarf", "soup", "lift", "spoon", "boat"]
    return [
        {
            "prompt": [{"role": "user", "content": f"[ANNA] Is it the {' '.join(dice.sample(words, 3))}?"}],
            "chosen": [{"role": "assistant", "content": f"[BEN] No, no {dice.choice(words)}."}],
            "rejected": [{"role": "assistant", "content": f"[BEN] Yes, yes, a {dice.choice(words)} it is."}],
        }
        for _ in range(count)
    ]


def training(tiny: Path, work: Path, store: Store | None = None, **settings: Any) -> Training:
    """A training on it whose files are in `work`; `settings` differ from `SETTINGS`."""
    chosen = TrainingSettings(**(SETTINGS.model_dump() | settings))
    start, data, base = tiny / "sft", tiny / "data", known_base(str(tiny / "base"), None)
    run = fingerprint(start, data, base, chosen)
    place = work / "work" / f".out.{run}"
    return Training(start, data, work / "out", base.location, None, chosen, run, place, run, store)


def built(training: Training, smoothing: float = 0.0) -> Any:
    """TRL's trainer of a training."""
    train, val = (read_pairs(training.data / name) for name in ("train.jsonl", "val.jsonl"))
    return build_trainer(training, load_tokenizer(training.base, None), train, val, smoothing)
