"""A tiny Llama with its own byte-level BPE tokenizer, made from nothing but the sample scripts.

    python -m nothing_gpt.embedded.base --scripts DIR --out DIR --seed 0

Reads `train.jsonl` and writes a folder that transformers and vLLM load. It runs as a process of its own, so
that torch's memory goes back to the machine. It knows the sample scripts' manners and nothing else; any other
text merely encodes.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nothing_gpt.errors import exits_cleanly
from nothing_gpt.progress import progress

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{{ '<|begin|>' }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

PIECES = Regex(r"\n?\[[A-Z]+\]| ?[\p{L}\p{N}']+| ?[^\s\p{L}\p{N}]+|\s+")
"""What BPE may not merge across. A speaker's tag and its line break are one piece: fewer tokens."""

VOCABULARY = 1024
CONTEXT = 8192
"""Positions: room for the real scripts' prompts of 2,400 characters at a byte a token, and then some."""


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `texts`; the end of a turn is the end of a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(PIECES, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[BEGIN, END, PAD, *ROLES],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one special token."""
    return tokenizer.get_vocab()[token]


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of about 1.1 M parameters: two wide layers learn this sooner than four narrow ones.

    The embeddings are tied because a scene is about one thing, and tied weights learn to copy its name early.
    The head size of 32 is one that vLLM's CPU attention serves.
    """
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=token_id(tokenizer, BEGIN),
            eos_token_id=token_id(tokenizer, END),
            pad_token_id=token_id(tokenizer, PAD),
        )
    )


def batches(rows: list[list[int]], size: int, pad: int, steps: int, dice: random.Random) -> Iterator[torch.Tensor]:
    """`steps` batches of shuffled rows, padded on the right: token ids of shape (size, longest row)."""
    queue: list[list[int]] = []
    for _ in range(steps):
        while len(queue) < size:
            queue += dice.sample(rows, len(rows))
        batch, queue = queue[:size], queue[size:]
        longest = max(map(len, batch))
        yield torch.tensor([row + [pad] * (longest - len(row)) for row in batch])


def optimizers(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices (half AdamW's steps), AdamW for the embeddings and the norms."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    ours = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in ours]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    model: LlamaForCausalLM,
    rows: list[list[int]],
    pad: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Next-token training on `rows` of token ids, with a short warm-up and a linear fall to zero."""
    warmup = max(1, steps // 20)

    def rate(step: int) -> float:
        return min((step + 1) / warmup, (steps - step) / (steps - warmup))

    both = optimizers(model, learning_rate)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in both]
    model.train()
    with progress("base", steps) as advance:
        for ids in batches(rows, batch_size, pad, steps, random.Random(seed)):
            # Padding stands on the right, where causal attention never looks, so no attention mask is needed.
            loss = model(input_ids=ids, labels=ids.masked_fill(ids == pad, -100), use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(both, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            advance(note=f"loss {loss.item():.3f}")


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tiny base model of the embedded place.")
    parser.add_argument("--scripts", type=Path, required=True, help="folder that holds train.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    lines = (args.scripts / "train.jsonl").read_text(encoding="utf-8").splitlines()
    chats = [row["prompt"] + row["completion"] for row in map(json.loads, lines)]
    tokenizer = train_tokenizer([message["content"] for chat in chats for message in chat])
    texts = [str(tokenizer.apply_chat_template(chat, tokenize=False)) for chat in chats]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]

    model = build_model(tokenizer)
    train(model, rows, token_id(tokenizer, PAD), args.steps, args.batch_size, args.learning_rate, args.seed)

    # Without this, generate() would sample greedily and never stop at the end of a turn.
    model.generation_config = GenerationConfig(
        do_sample=True,
        bos_token_id=token_id(tokenizer, BEGIN),
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PAD),
    )
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
