"""What a prompt and a pair take: bytes in the store, memory while votes are asked for and while training is prepared.

    python -m benchmarks.footprint [--prompts 2000] [--held 200000] [--pairs 2000 8000]

Both stages run in one process against an endpoint that answers at once. Memory is told by the difference of two sizes,
each in a process of its own. Pairs are as long as `workload.py` draws them, with four characters a token. The last line
is JSON.
"""

import argparse
import hashlib
import json
import random
import string
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.measure import input_folder, run_stage
from benchmarks.stage import peak_mib
from benchmarks.workload import sample_lengths
from nothing_gpt.config import JudgeSettings
from nothing_gpt.positions import HASH_BYTES, Positions
from nothing_gpt.preferences import read_judged, read_pairs, write_pairs
from nothing_gpt.records import Rows, read_jsonl, write_jsonl
from nothing_gpt.replies import Meter, Reply

COMPLETIONS = 3
URL = "http://here/v1"
WORDS = ["".join(letters) for letters in product(string.ascii_lowercase + string.digits, repeat=3)]
"""46,656 words: most ids of so large a vocabulary are Python objects of their own, as a real one's are."""


def stored(prompts: int) -> dict[str, Any]:
    """Bytes in the store of a prompt and of a pair, beside their texts: of a prompt these are there 3 times and those
    of its completions 9 / 3 times each, in a pair each once."""
    options = "--completions", COMPLETIONS, "--in-process", 0
    with input_folder("generation", prompts, COMPLETIONS) as folder:
        run = run_stage("generation", folder, URL, 64, *options)
        total = _bytes(folder / "store")
        rows = [row for _, row in read_jsonl(folder / "store" / run.said["key"] / "completions.jsonl")]
        total -= 3 * sum(_length(row["prompt"]) + sum(map(len, row["completions"])) for row in rows)
    with input_folder("judging", prompts, COMPLETIONS) as folder:
        run = run_stage("judging", folder, URL, 64, *options)
        total += _bytes(folder / "store") - (folder / "completions.jsonl").stat().st_size  # counted above
        made = folder / "pairs"
        made.mkdir()
        split = write_pairs(read_judged(folder / "store" / run.said["key"] / "judged.jsonl"), made, JudgeSettings())
        pairs = [row for file in made.iterdir() for _, row in read_jsonl(file)]
        beside = _bytes(made) - sum(map(_length, (side for row in pairs for side in row.values())))
    return {"bytes_a_prompt": round(total / prompts), "bytes_a_pair": round(beside / (split.train + split.val))}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.jsonl"))


def _length(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"]) for message in messages)


def judging(prompts: int) -> None:
    """Holds what asking for two votes a prompt holds: places, the sets seen, the journal's index, latencies."""
    sets, seen, index = Rows[None]([Path("nowhere")], lambda identity, row: None), Positions(), Positions()
    meter, reply = Meter(), Reply("", [], 0, 0)
    for number in range(prompts):
        identity = hashlib.sha256(number.to_bytes(8))
        sets.note(0, number, identity.hexdigest())
        seen.add(identity.digest()[:HASH_BYTES], 0)
        for vote in range(2):
            index.add(hashlib.blake2b(bytes([vote]) + identity.digest(), digest_size=HASH_BYTES).digest(), number)
            meter.count(reply, float(number))
    assert len(sets) == len(seen) == prompts


def preparing(pairs: int) -> None:
    """Reads, checks and tokenises pairs as training does before its model is loaded."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    from nothing_gpt.training_data import check_split, check_tokens, dataset, fit, tokenize

    plain = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    plain.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    dice = random.Random(0)

    def message(role: str, tokens: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(dice.choices(WORDS, k=tokens))}]

    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        file = Path(folder) / "train.jsonl"
        write_jsonl(
            file,
            (
                {
                    "prompt": message("user", pair.prompt),
                    "chosen": message("assistant", pair.chosen),
                    "rejected": message("assistant", pair.rejected),
                }
                for pair in sample_lengths(pairs, seed=0)
            ),
        )
        rows = read_pairs(file)
        tokens = tokenize(tokenizer, rows)
        check_tokens(tokens, len(WORDS), file.name)
        check_split(rows, [{**rows[0], "prompt": []}])
        rows[:] = fit(rows, tokens, 2048, "refuse", Counter(), file.name)
        dataset(rows, Path(folder))


def _peak(work: Callable[[int], None], size: int) -> float:
    work(size)
    return peak_mib()


def kib_each(work: Callable[[int], None], few: int, many: int) -> float:
    """Memory (KiB) of one more, between two sizes."""
    peaks = []
    for size in (few, many):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            peaks.append(process.submit(_peak, work, size).result())
    return 1024 * (peaks[1] - peaks[0]) / (many - few)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=2_000)
    parser.add_argument("--held", type=int, default=200_000)
    parser.add_argument("--pairs", type=int, nargs=2, default=[2_000, 8_000])
    given = parser.parse_args(arguments)
    said = stored(given.prompts)
    said["judging_kib_a_prompt"] = round(kib_each(judging, given.held // 10, given.held), 3)
    said["preparing_kib_a_pair"] = round(kib_each(preparing, *given.pairs), 1)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
