"""The starting adapter: a short LoRA fine-tuning of the base model on scripts, with TRL's SFTTrainer.

    python -m nothing_gpt.sft.train --base DIR --data train.jsonl --out DIR --max-steps 10

Rows are conversational `{prompt, completion}`; only the completion's tokens count. It publishes two files
that vLLM serves: adapter_config.json and adapter_model.safetensors, a plain LoRA on every linear layer. It
makes no checkpoints: a run is seconds on the embedded model, and the adapter appears only when it is whole.
"""

import argparse
import tempfile
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from nothing_gpt.adapters import save_adapter
from nothing_gpt.errors import exits_cleanly
from nothing_gpt.trainers import ShowSteps


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description="Train the starting adapter.")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model and its tokenizer")
    parser.add_argument("--base-name", default="embedded-base", help="the base model's name in the adapter")
    parser.add_argument("--data", type=Path, required=True, help="JSON Lines of {prompt, completion}")
    parser.add_argument("--out", type=Path, required=True, help="new folder to publish the adapter in")
    parser.add_argument("--max-steps", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"--out {args.out} exists already and may be served; name a new folder")
    args.out.parent.mkdir(parents=True, exist_ok=True)

    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype="float32")
    rows = load_dataset("json", data_files=str(args.data), split="train").shuffle(seed=args.seed)
    # Tokenising rows that no step will see is half the run on the embedded place.
    rows = rows.select(range(min(len(rows), args.max_steps * args.batch_size)))

    policy = get_peft_model(
        model,
        LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )

    with tempfile.TemporaryDirectory(prefix="_", dir=args.out.parent) as scratch:
        trainer = SFTTrainer(
            model=policy,
            args=SFTConfig(
                output_dir=scratch,
                max_steps=args.max_steps,
                learning_rate=args.learning_rate,
                per_device_train_batch_size=args.batch_size,
                completion_only_loss=True,
                gradient_checkpointing=False,
                bf16=False,
                seed=args.seed,
                logging_steps=5,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[ShowSteps("sft")],
        )
        trainer.train()
        # The adapter names its model, not where that lies: a path would change its digest elsewhere.
        policy.peft_config["default"].base_model_name_or_path = args.base_name
        finished = Path(scratch) / "adapter"
        save_adapter(policy, finished)
        finished.replace(args.out)


if __name__ == "__main__":
    main()
