"""How fast the recipe trains, against the guide's settings in the same run; no download, no data, random weights.

    python -m benchmarks.training                                     the guide's settings and ours
    python -m benchmarks.training --runs ours ours:sorted_updates=off ours:per_device_train_batch_size=1
    python -m benchmarks.training --shape llama-3.2-3b --pairs 128    the default where there is a CUDA device

A run is `guide` or `ours` (the presets `guide` and `recommended`), then what differs: fields of TrainingSettings, or
what PARTS names. All share the learning rate, the 16 pairs an update, the epochs and the data (ALIKE), so that their
losses compare. Each measurement is a process of its own; repeats go round robin; reported are medians and the spread.
Timed are the reference's log-probabilities of the training pairs, and training; not loading, not evaluation. A CPU
trains with one thread and without gradient checkpointing, and that thread's CPU seconds count, which neighbours on a
shared machine disturb less; on a CUDA device the clock's count, the base is bfloat16, and NF4 for the guide's settings.
The last line is JSON; `ratio` is our pairs a second over the guide's.
"""

import argparse
import json
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import yaml

from benchmarks.workload import SHAPES, PairLengths, Shape, mfu, sample_lengths, training_flops
from nothing_gpt.config import TrainingSettings
from nothing_gpt.loading import load_settings
from nothing_gpt.preferences import read_pairs

PARTS: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {
    "shared_prompts": lambda _: patch("nothing_gpt.pair_batches.SHARING", frozenset()),
    "sorted_updates": lambda _: patch(
        "nothing_gpt.trainers.PreferenceTrainer._get_train_sampler",
        resolve_name("transformers.Trainer._get_train_sampler"),
    ),
    "compact_head": lambda _: patch("trl.trainer.utils._use_triton", lambda device: True),
    "head_chunk": lambda size: patch("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", size),
    "optim": lambda name: _with_argument("trl.trainer.dpo_config.DPOConfig", optim=name),
    "attention": lambda name: _with_argument(
        "transformers.AutoModelForCausalLM.from_pretrained", attn_implementation=name
    ),
}
"""What is no setting of the recipe, and how a run changes it. `shared_prompts` and `sorted_updates` can only be taken
out (=off); `compact_head` (on a CPU too, score the completions alone) and `head_chunk` are TRL's own; `optim` and
`attention` are what transformers takes."""

PRESETS = Path(__file__).parent.parent / "deployments" / "presets"
ALIKE: dict[str, Any] = {"num_train_epochs": 2, "lr_scheduler_type": "linear", "warmup_steps": 0.1, "logging_steps": 1}
LEARNING_RATES = {"llama-3.2-3b": 2e-5, "cpu": 2e-4}
"""What all runs share. Two epochs are the recommended budget; the guide's one would hide what the reference costs."""

VALIDATION_PAIRS = 8


@dataclass(frozen=True)
class Measurement:
    """One run, once. Seconds are of the whole run, `reference_s` those before the first step; loss after training."""

    reference_s: float
    training_s: float
    train_loss: float
    eval_loss: float
    peak_gib: float
    device: str

    @property
    def seconds(self) -> float:
        return self.reference_s + self.training_s


def settings_of(run: str, cuda: bool, learning_rate: float) -> tuple[TrainingSettings, dict[str, Any]]:
    """The settings that a run's text names, and what else it changes.

    Raises:
        ValueError: neither `guide` nor `ours`, or a setting that there is not.
    """
    name, _, differences = run.partition(":")
    if name not in ("guide", "ours"):
        raise ValueError(f"--runs {run}: begin with guide or ours")
    preset = load_settings(PRESETS / ("guide.yaml" if name == "guide" else "recommended.yaml")).training
    changed = dict(item.split("=") for item in differences.split(",")) if differences else {}
    changed = {key: yaml.safe_load(value) for key, value in changed.items()}
    if "per_device_train_batch_size" in changed:
        changed.setdefault("gradient_accumulation_steps", 16 // changed["per_device_train_batch_size"])
    parts = {"shared_prompts": False, "sorted_updates": False} if name == "guide" else {}
    parts |= {key: changed.pop(key) for key in PARTS if key in changed}
    on_cpu = {} if cuda else {"quantization": "none", "gradient_checkpointing": False}
    values = preset.model_dump() | ALIKE | {"learning_rate": learning_rate} | on_cpu | changed
    return TrainingSettings.model_validate(values), parts


def measure(place: Path, run: str, pairs: int, learning_rate: float, seed: int) -> Measurement:
    """Builds the trainer from the files in `place` and trains. To be called in a fresh process: the peak is its own."""
    import torch
    from transformers import PrinterCallback
    from transformers.trainer_utils import IntervalStrategy

    from nothing_gpt.dpo.recipe import Training, build_trainer
    from nothing_gpt.policy import load_tokenizer

    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    torch.set_num_threads(torch.get_num_threads() if cuda else 1)
    settings, parts = settings_of(run, cuda, learning_rate)
    settings = settings.model_copy(update={"seed": seed})
    rows = read_pairs(place / "pairs.jsonl")
    base = str(place / "base")
    with tempfile.TemporaryDirectory() as work, ExitStack() as changed:
        for part, value in parts.items():
            changed.enter_context(PARTS[part](value))
        reference = _timed("trl.trainer.dpo_trainer.DPOTrainer._precompute_ref_logps", clock, changed)
        training = Training(place / "adapter", place, place, base, None, settings, run, Path(work), run)
        trainer = build_trainer(training, load_tokenizer(base, None), rows[:pairs], rows[pairs:], 0.0)
        trainer.remove_callback(PrinterCallback)
        trainer.args.eval_strategy = trainer.args.save_strategy = IntervalStrategy.NO
        before = clock()
        train_loss = trainer.train().training_loss
        if cuda:
            torch.cuda.synchronize()
        training_s = clock() - before
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        evaluated = trainer.evaluate()
    return Measurement(
        reference_s=sum(reference[:1]),  # of the training pairs; the second call is for the validation pairs
        training_s=training_s,
        train_loss=train_loss,
        eval_loss=evaluated["eval_loss"],
        peak_gib=peak / 2**30,
        device=torch.cuda.get_device_name() if cuda else "CPU, one thread",
    )


def _with_argument(target: str, **argument: Any) -> Any:
    return patch(target, partial(resolve_name(target), **argument))


def _timed(target: str, clock: Callable[[], float], stack: ExitStack) -> list[float]:
    """The seconds of every call of `target` while the stack is open, as they come."""
    seconds: list[float] = []
    original = resolve_name(target)

    def timed(*args: Any, **kwargs: Any) -> Any:
        before = clock()
        result = original(*args, **kwargs)
        seconds.append(clock() - before)
        return result

    stack.enter_context(patch(target, timed))
    return seconds


def build_place(place: Path, shape: Shape, lengths: list[PairLengths], seed: int) -> None:
    """A base model, its tokenizer, an adapter and pairs of these lengths, all at random, as the recipe reads them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    from nothing_gpt.adapters import save_adapter

    torch.manual_seed(seed)
    cuda = torch.cuda.is_available()
    sizes = asdict(shape)
    rank = sizes.pop("rank")
    config = LlamaConfig(**sizes, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    with torch.device("cuda" if cuda else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if cuda else torch.float32)
    model.save_pretrained(place / "base")
    _tokenizer(shape.vocab_size).save_pretrained(place / "base")
    policy = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    # Not the usual zeros in B: the reference is an adapter that does something.
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)
    save_adapter(policy, place / "adapter")
    rows = _rows(lengths, shape.vocab_size, random.Random(seed))
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _tokenizer(size: int) -> Any:
    """Every number below `size` is a token; the chat template adds none."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = Tokenizer(models.WordLevel({str(number): number for number in range(size)}, unk_token="0"))
    numbers.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=numbers, bos_token="0", eos_token="1", pad_token="2")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    return tokenizer


def _rows(lengths: list[PairLengths], vocabulary: int, dice: random.Random) -> list[dict[str, Any]]:
    """Pairs of random tokens. Chosen sides have slightly more even numbers: a preference that can be learnt."""

    def message(role: str, length: int, odd: float) -> list[dict[str, str]]:
        tokens = (2 * dice.randrange(2, vocabulary // 2) + (dice.random() < odd) for _ in range(length))
        return [{"role": role, "content": " ".join(map(str, tokens))}]

    return [
        {
            "prompt": message("user", pair.prompt, 0.5),
            "chosen": message("assistant", pair.chosen, 0.45),
            "rejected": message("assistant", pair.rejected, 0.55),
        }
        for pair in lengths
    ]


def row_of(run: str, repeats: list[Measurement], lengths: list[PairLengths], shape: Shape) -> dict[str, Any]:
    """The table's figures of a run: medians over the repeats, and the spread of the time."""
    times = [repeat.seconds for repeat in repeats]
    trained, seconds = ALIKE["num_train_epochs"] * len(lengths), statistics.median(times)
    flops = ALIKE["num_train_epochs"] * sum(training_flops(shape, pair) for pair in lengths)
    tokens = ALIKE["num_train_epochs"] * sum(pair.tokens for pair in lengths)
    return {
        "run": run,
        "seconds_per_pair": seconds / trained,
        "spread": (max(times) - min(times)) / seconds,
        "reference_share": statistics.median(repeat.reference_s / repeat.seconds for repeat in repeats),
        "tokens_per_second": tokens / seconds,
        "mfu": mfu(flops, seconds, repeats[0].device),
        "peak_gib": max(repeat.peak_gib for repeat in repeats),
        "train_loss": statistics.median(repeat.train_loss for repeat in repeats),
        "eval_loss": statistics.median(repeat.eval_loss for repeat in repeats),
        "times": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed against the guide's settings.")
    parser.add_argument("--runs", nargs="+", default=["guide", "ours"], help="guide or ours, with :key=value,...")
    parser.add_argument("--shape", choices=SHAPES, help="default: llama-3.2-3b on a CUDA device, else cpu")
    parser.add_argument("--pairs", type=int, help="default: 128 on a CUDA device, else 16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # A process each, for its memory is its own; forked off one that has everything imported.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["benchmarks.training", "nothing_gpt.dpo.train", "nothing_gpt.trainers", "peft"])
    fresh = partial(ProcessPoolExecutor, 1, mp_context=processes)
    with fresh() as pool:
        cuda = pool.submit(_has_cuda).result()
    name = args.shape or ("llama-3.2-3b" if cuda else "cpu")
    shape, rate = SHAPES[name], LEARNING_RATES[name]
    for run in args.runs:
        settings_of(run, cuda, rate)
    args.pairs = args.pairs or (128 if cuda else 16)
    lengths = sample_lengths(args.pairs + VALIDATION_PAIRS, args.seed)
    measured: dict[str, list[Measurement]] = {run: [] for run in args.runs}
    with tempfile.TemporaryDirectory() as folder:
        with fresh() as pool:
            pool.submit(build_place, Path(folder), shape, lengths, args.seed).result()
        for _ in range(args.repeats):
            for run in args.runs:
                try:
                    with fresh() as pool:
                        task = pool.submit(measure, Path(folder), run, args.pairs, rate, args.seed)
                        measured[run].append(task.result())
                except RuntimeError as error:
                    if "out of memory" not in str(error):
                        raise
                    print(f"{run}: out of memory, so it has no row", file=sys.stderr, flush=True)
                else:
                    print(run, measured[run][-1], file=sys.stderr, flush=True)
    table = [row_of(run, repeats, lengths[: args.pairs], shape) for run, repeats in measured.items() if repeats]
    print(report(table, name, next(repeats[0].device for repeats in measured.values() if repeats), args))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def report(table: list[dict[str, Any]], shape: str, device: str, args: argparse.Namespace) -> str:
    """The table, one line a run, then a line of JSON."""
    lines = [f"{shape} on {device}, {args.pairs} pairs, {ALIKE['num_train_epochs']} epochs, {args.repeats} repeats"]
    first = table[0]["seconds_per_pair"]
    for row in table:
        share = "-" if row["mfu"] is None else f"{row['mfu']:.0%}"
        speed = first / row["seconds_per_pair"]
        lines.append(
            f"{row['seconds_per_pair']:8.4f} s/pair (spread {row['spread']:4.0%}), {speed:5.2f}x, "
            f"{row['tokens_per_second']:7.0f} tokens/s, MFU {share}, {row['peak_gib']:6.2f} GiB, "
            f"loss {row['train_loss']:.4f}, then {row['eval_loss']:.4f}  {row['run']}"
        )
    seconds = {row["run"]: row["seconds_per_pair"] for row in table}
    ratio = seconds["guide"] / seconds["ours"] if {"guide", "ours"} <= seconds.keys() else None
    return "\n".join([*lines, json.dumps({"device": device, "shape": shape, "ratio": ratio, "runs": table})])


if __name__ == "__main__":
    main()
