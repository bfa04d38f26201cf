"""What the training benchmark computes on, as plain numbers: token lengths, model shapes, operations, devices' peaks.

    python -m benchmarks.workload    tokens a pair with their padding, and bytes of what does not grow with them

Pure functions; nothing here imports torch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

PROMPT_DECILES = (199, 226, 235, 245, 254, 262, 269, 278, 291, 310, 696)
COMPLETION_DECILES = (25, 172, 202, 222, 237, 249, 256, 256, 256, 256, 256)
"""Lengths in tokens of the first run's 919 training pairs, at 0, 10, ... 100 %. No tokenizer of the base was at hand:
words and signs were counted, and scaled so that a sequence has 496 tokens in the mean and a cut completion 256."""


@dataclass(frozen=True)
class PairLengths:
    """A pair's lengths in tokens."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def tokens(self) -> int:
        """Of both sequences; the prompt counts twice, whoever computes it once."""
        return 2 * self.prompt + self.chosen + self.rejected


def sample_lengths(pairs: int, seed: int) -> list[PairLengths]:
    """Prompt, chosen and rejected drawn independently (in the first run's pairs they correlate at 0.09 or less)."""
    dice = random.Random(seed)
    return [
        PairLengths(*(_at(deciles, dice.random()) for deciles in (PROMPT_DECILES, *[COMPLETION_DECILES] * 2)))
        for _ in range(pairs)
    ]


def _at(deciles: Sequence[int], share: float) -> int:
    """The quantile at `share` (0 to 1), straight between the deciles."""
    position = share * (len(deciles) - 1)
    below = int(position)
    low, high = list(pairwise(deciles))[below]
    return round(low + (high - low) * (position - below))


def padded_tokens(pairs: Sequence[PairLengths], micro: int, *, ordered: bool, shared: bool, update: int = 16) -> float:
    """Tokens that a pass computes a pair, padding included: in micro-batches of so many pairs, of updates that are
    sorted by length or not, as one row a pair whose prompt is shared or as two full sequences."""

    def row(pair: PairLengths) -> int:
        return pair.prompt + (pair.chosen + pair.rejected if shared else max(pair.chosen, pair.rejected))

    computed = 0
    for start in range(0, len(pairs), update):
        these = list(pairs[start : start + update])
        if ordered:
            these.sort(key=lambda pair: pair.tokens, reverse=True)
        for first in range(0, len(these), micro):
            rows = [row(pair) for pair in these[first : first + micro]]
            computed += len(rows) * max(rows) * (1 if shared else 2)
    return computed / len(pairs)


@dataclass(frozen=True)
class Shape:
    """A Llama's shape, with the rank of a LoRA on every linear layer but the head."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rank: int

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's linear maps."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
        return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]

    @property
    def linear_parameters(self) -> int:
        return self.num_hidden_layers * sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def adapter_parameters(self) -> int:
        return self.num_hidden_layers * self.rank * sum(inputs + outputs for inputs, outputs in self.linears)


SHAPES = {
    "llama-3.2-3b": Shape(128256, 3072, 8192, 28, 24, 8, 128, rank=32),
    "cpu": Shape(1024, 384, 1024, 1, 6, 2, 64, rank=16),
}
"""`cpu` keeps the large one's proportions: inner size 2.7 times the hidden one, the head an eighth of all."""


def forward_flops(shape: Shape, pair: PairLengths) -> float:
    """Operations of one forward pass over both sequences of a pair in full, the head on the completions alone."""
    weights = shape.linear_parameters + shape.adapter_parameters
    head = shape.vocab_size * shape.hidden_size
    return 2 * weights * pair.tokens + 2 * head * (pair.chosen + pair.rejected) + _attention(shape, pair)


def training_flops(shape: Shape, pair: PairLengths) -> float:
    """Operations that a step needs for a pair, by which MFU is counted: forward, and backward with gradients of the
    adapter and of activations, but not of the frozen weights. Neither reference nor recomputation nor padding count."""
    base = forward_flops(shape, pair)
    adapter = 2 * shape.adapter_parameters * pair.tokens
    return 2 * base + adapter + _attention(shape, pair)


def _attention(shape: Shape, pair: PairLengths) -> float:
    """Scores and their sums over values, causal: half of all pairs of positions."""
    width = shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim
    return sum(2 * width * (pair.prompt + side) ** 2 for side in (pair.chosen, pair.rejected))


PEAK_TFLOPS = {
    "H200 NVL": 835.5, "H200": 989.0, "H100 NVL": 835.5, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0,
    "L40S": 362.0, "L40": 181.0, "L4": 121.0, "A10G": 70.0, "A10": 125.0,
}  # fmt: skip
"""Dense bfloat16 TFLOP/s by their makers' data sheets; the first name found in the device's is taken."""


def peak_flops(device: str) -> float | None:
    """Peak operations a second of a device by its name; None where it is not known, as for a CPU."""
    return next((1e12 * peak for name, peak in PEAK_TFLOPS.items() if name in device), None)


def mfu(flops: float, seconds: float, device: str) -> float | None:
    """Share (0 to 1) of the device's peak that went into operations the model needs; None where no peak is known."""
    peak = peak_flops(device)
    return None if peak is None else flops / seconds / peak


def main() -> None:
    pairs, shape = sample_lengths(10_000, seed=0), SHAPES["llama-3.2-3b"]
    layouts = {
        "guide, 2 x 8": padded_tokens(pairs, 2, ordered=False, shared=False),
        "ours, 4 x 4": padded_tokens(pairs, 4, ordered=True, shared=True),
        "without shared prompts": padded_tokens(pairs, 4, ordered=True, shared=False),
        "without sorted updates": padded_tokens(pairs, 4, ordered=False, shared=True),
        "ours, 1 x 16": padded_tokens(pairs, 1, ordered=True, shared=True),
    }
    for name, tokens in layouts.items():
        print(f"{tokens:8,.0f} tokens a pair  {name}")
    base = 2 * (shape.linear_parameters + shape.vocab_size * shape.hidden_size)
    print(f"{base / 2**30:8.1f} GiB  Llama-3.2-3B in bfloat16")
    # Adapter, its reference copy, gradients, and Adam's two moments.
    print(f"{5 * 4 * shape.adapter_parameters / 2**30:8.1f} GiB  its adapter in training, in float32")


if __name__ == "__main__":
    main()
