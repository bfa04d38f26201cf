"""What a size of data or of model takes: the tables of docs/scaling.md, computed.

    python -m benchmarks.capacity

Nothing is measured here. What the plan of a run (`nothing-gpt run --dry-run`) reckons with is taken from it, whether a
model is sharded from `sharding.py`; every other constant says where it is from.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.workload import PEAK_TFLOPS, SHAPES, PairLengths, Shape, forward_flops
from flows.expected import SECONDS_A_PAIR, expected
from nothing_gpt.config import TrainingSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.loading import PRESETS, load_settings
from nothing_gpt.serve.server import MAX_NUM_SEQS
from nothing_gpt.sharding import NF4_BYTES, is_sharded

SETTINGS = load_settings([PRESETS.with_name("gke.yaml"), PRESETS / "recommended.yaml"])
PAIR = PairLengths(267, 229, 229)
"""The first run's mean pair, in tokens (workload.py)."""
TOKENS_A_SECOND = 1021 * 3 * PAIR.chosen / (20 * 60)
"""Quoted: the guide's 1,021 x 3 completions from one vLLM in 20 minutes."""
CALLS_A_SECOND = 1021 / (5 * 60) / 16
"""Of a judge, for each in flight. Quoted: the guide's 1,021 calls in 5 minutes, 16 at once."""
CPU_S = 0.88e-3 + 2 * 1.27e-3
"""A prompt, HTTP included. Measured: generation (scaling.md), and two verdicts (engines.md: 3.4 s less the start)."""
BYTES_A_TOKEN = 4
"""Assumed, of English text."""
STORED_BYTES = 1438 + 202 + BYTES_A_TOKEN * (4 * PAIR.prompt + 11 * PAIR.chosen)
"""A prompt with its completions, votes and pair. Beside the texts measured (footprint.py); which are there 4 times and
11 / 3 times each."""
PROCESS_MIB, PROCESS_KIB_A_PROMPT = 91, 0.139
"""Measured up to a million prompts (scale.py)."""
TRAINING_KIB_A_PAIR = 26
"""Measured (footprint.py)."""
JOB_GIB = 12
"""k8s/train-job.yaml."""
MOST_HOURS = 168
"""The most that place.gke.running_hours may be."""


@dataclass(frozen=True)
class Size:
    """So many prompts, and what they are worked on with: vLLMs, calls of the judge at once, GPUs that train."""

    prompts: int
    replicas: int
    judging: int
    gpus: int


SIZES = [Size(1_000, 1, 16, 1), Size(10_000, 1, 16, 1), Size(100_000, 4, 64, 4), Size(1_000_000, 16, 256, 16),
         Size(10_000_000, 64, 1024, 32)]  # fmt: skip
TESTED = 1_000
"""prompts.test_limit: by then the gate is decided, or the adapters are too close to tell."""
SERVED = {
    "1B": (Shape(128256, 2048, 8192, 16, 32, 8, 64, rank=32), 1.24e9),
    "3B": (SHAPES["llama-3.2-3b"], 3.21e9),
    "8B": (Shape(128256, 4096, 14336, 32, 32, 8, 128, rank=32), 8.03e9),
    "13B": (Shape(32000, 5120, 13824, 40, 40, 40, 128, rank=32), 13.0e9),
    "32B": (Shape(152064, 5120, 27648, 64, 40, 8, 128, rank=32), 32.8e9),
    "70B": (Shape(128256, 8192, 28672, 80, 64, 8, 128, rank=32), 70.6e9),
}
"""Shapes and parameters of Llama 3.2, 3.2, 3.1, 2, Qwen 2.5 and Llama 3.1, by their makers' configurations."""
MEMORY = {"L4": 24e9, "A100": 80e9, "H100": 80e9}
UTILISATION = 3 * forward_flops(SHAPES["llama-3.2-3b"], PAIR) / SECONDS_A_PAIR / (PEAK_TFLOPS["L4"] * 1e12)
"""Share of a GPU's peak. Quoted: the guide's training of a 3B model on an L4, by its seconds a pair; 3 passes."""


def evaluated_at(steps: float) -> float:
    """Prompts at which evaluations every so many steps take as long as the training: each is one pass over the
    validation pairs, where a step is three over the pairs of an update."""
    training = SETTINGS.training
    update = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return 3 * update * steps / SETTINGS.judge.val_ratio


def data_table() -> str:
    """What so many prompts take, a column a size."""
    columns = [*map(_taken, SIZES)]
    rows = ([name, *(column[name] for column in columns)] for name in columns[0])
    return _table(["prompts", *(f"{size.prompts:,}" for size in SIZES)], rows)


def _taken(size: Size) -> dict[str, str]:
    counts = {"rows": size.prompts, "test_rows": min(TESTED, size.prompts // 9)}
    judge, train, evaluate = (expected(stage, SETTINGS, counts) for stage in ("judge", "train", "evaluate"))
    serving = size.prompts * SETTINGS.sampling.num_completions * PAIR.chosen / TOKENS_A_SECOND
    training = (train.rows or 0) * SETTINGS.training.num_train_epochs * SECONDS_A_PAIR
    rate = size.judging * CALLS_A_SECOND
    asked = (judge.usd or 0) + (evaluate.usd or 0)
    rented = SETTINGS.place.gpu_usd_per_hour * (serving + training) / 3600
    return {
        "vLLMs, each on an L4 (`place.serve_url`)": f"{size.replicas}",
        "generation": _time(serving / size.replicas),
        "`judge.concurrency`": f"{size.judging:,}",
        "calls a minute": f"{rate * 60:,.0f}",
        "judging": _time((judge.calls or 0) / rate),
        "our own CPU": _time(size.prompts * CPU_S),
        "memory of the run": f"{PROCESS_MIB + size.prompts * PROCESS_KIB_A_PROMPT / 1024:,.0f} MiB",
        "store": f"{size.prompts * STORED_BYTES / 1e9:,.2f} GB",
        "pairs to train on, at most": f"{train.rows:,}",
        "L4s (`training.gpus` x `nodes`)": f"{size.gpus}",
        "training": _time(training / size.gpus),
        "`training.eval_steps`": f"{max(SETTINGS.training.eval_steps, round(10 * size.prompts / evaluated_at(1))):,}",
        "memory of each training process": f"{(train.rows or 0) * TRAINING_KIB_A_PAIR / 2**20:,.1f} GiB",
        "USD, judging": f"{asked:,.2f}",
        "USD, L4s on spot": f"{rented:,.2f}",
        "USD together": f"{asked + rented:,.2f}",
    }


def limits_table() -> str:
    """At how many prompts each limit is met, with the settings of `SETTINGS`, the nearest first."""
    usd = (expected("judge", SETTINGS, {"rows": 1000, "test_rows": 0}).usd or 0) / 1000
    pairs, votes = 1 - SETTINGS.judge.val_ratio, SETTINGS.judge.votes
    hours = pairs * SETTINGS.training.num_train_epochs * SECONDS_A_PAIR / 3600
    found = [
        ((SETTINGS.judge.max_cost_usd or 0) / usd, "`judge.max_cost_usd` of gke.yaml is spent", "raise it"),
        (evaluated_at(SETTINGS.training.eval_steps), "evaluations take as long as the training itself",
         "`training.eval_steps` as above"),
        (SETTINGS.place.gke.running_hours / hours, f"one L4 trains for {SETTINGS.place.gke.running_hours:g} h",
         "`place.gke.running_hours`, `training.gpus`"),
        (MOST_HOURS / hours, f"one L4 trains for {MOST_HOURS} h, the most", "`training.gpus`, `training.nodes`"),
        (JOB_GIB * 2**20 / TRAINING_KIB_A_PAIR / pairs,
         f"pairs fill the Job's {JOB_GIB} GiB a GPU, the model not counted",
         "memory in k8s/train-job.yaml, a larger machine"),
        (16 * MOST_HOURS / hours, f"16 L4s, one for each pair of an update, train for {MOST_HOURS} h",
         "a larger update, or a faster GPU"),
        (1024 * CALLS_A_SECOND * 86400 / votes, "1,024 calls at once, the most, judge for a day",
         "several addresses in `place.judge_url`"),
        (86400 / CPU_S, "one core works for a day", "`scale.workers` on Ray"),
    ]  # fmt: skip
    ordered = sorted(found, key=lambda limit: limit[0])
    return _table(["prompts", "limit", "what to set"], ([f"{float(f'{at:.2g}'):,.0f}", *said] for at, *said in ordered))


def group(parameters: float, quantization: str, memory: float) -> tuple[int, bool] | None:
    """The fewest GPUs (1 to 16) on which the base model can be trained, and whether it is sharded there; None where
    there are none."""
    settings = TrainingSettings.model_validate({"quantization": quantization, "gradient_accumulation_steps": 16})
    for gpus in (1, 2, 4, 8, 16):
        try:  # alone it must fit whole, as it must on each of two
            sharded = is_sharded(round(parameters), settings, round(memory), max(gpus, 2))
        except FatalError:
            continue
        if gpus > 1 or not sharded:
            return gpus, sharded
    return None


def serving_gpus(shape: Shape, parameters: float, memory: float) -> int:
    """The fewest GPUs of whose memory vLLM's default of 0.9 holds the weights in bfloat16 and 32 sequences' keys and
    values."""
    sequence = 4 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * (PAIR.prompt + PAIR.chosen)
    needed = 2 * parameters + MAX_NUM_SEQS * sequence
    return next(gpus for gpus in (1, 2, 4, 8, 16) if needed <= gpus * 0.9 * memory)


def model_table() -> str:
    """What base models of these sizes take."""
    head = ["base", "bfloat16", "NF4", "L4s, bfloat16", "L4s, NF4", "80 GB, bfloat16", "80 GB, NF4"]
    head += [*(f"{name} hours" for name in MEMORY), "USD on L4s, spot", "to serve: L4s", "80 GB"]
    return _table(head, map(_model, SERVED))


def _model(name: str) -> list[str]:
    shape, parameters = SERVED[name]
    groups = [group(parameters, kind, MEMORY[gpu]) for gpu in ("L4", "A100") for kind in ("none", "nf4")]
    passes = 3 * forward_flops(shape, PAIR) * 1000 * SETTINGS.training.num_train_epochs
    hours = [passes / (PEAK_TFLOPS[gpu] * 1e12 * UTILISATION) / 3600 for gpu in MEMORY]
    return [
        name,
        *(f"{parameters * each / 1e9:.1f} GB" for each in (2, NF4_BYTES)),
        *("none" if one is None else f"{one[0]}{' FSDP' if one[1] else ''}" for one in groups),
        *(f"{one:.2f}" for one in hours),
        f"{hours[0] * SETTINGS.place.gpu_usd_per_hour:.2f}",
        *(str(serving_gpus(shape, parameters, MEMORY[gpu])) for gpu in ("L4", "A100")),
    ]


def _time(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(data_table(), limits_table(), model_table(), sep="\n\n")
