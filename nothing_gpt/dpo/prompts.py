"""Stage 0: the prompts, each once, split into those that make pairs and those held out for the comparison."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress, islice
from pathlib import Path
from typing import Any

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import PromptsSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.records import Prompt, file_digest, read_prompts, share, write_jsonl

STAGE = Stage("prompts", 2)
PROMPTS = "prompts.jsonl"
TEST = "test.jsonl"


def prompts(workshop: Workshop, paths: Sequence[Path], settings: PromptsSettings) -> Artifact:
    """Reads prompts files into the store: `prompts.jsonl` for pairs, `test.jsonl` held out, both in the files' order.

    Raises:
        FatalError: a file is missing or empty, or holds a line that is no prompt; or one side of the split is empty.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        found, duplicates = read_prompts(*paths)
        drawn = _drawn(found, settings)

        def side(held_out: bool) -> Iterator[dict[str, Any]]:
            for prompt in compress(found, drawn):
                if (share(prompt.id, settings.seed, "test") < settings.test_share) == held_out:
                    yield {"prompt": prompt.messages}

        counts = {"duplicates": duplicates}
        for name, count, rows in (
            (PROMPTS, "rows", islice(side(held_out=False), settings.limit)),
            (TEST, "test_rows", islice(side(held_out=True), settings.test_limit)),
        ):
            counts[count] = write_jsonl(folder / name, rows)
            if not counts[count]:
                raise FatalError(
                    f"{', '.join(map(str, paths))}: {sum(drawn)} prompts leave none for {name}; give more prompts, or "
                    f"change prompts.test_share ({settings.test_share})"
                )
        return counts

    for path in paths:
        if not path.is_file():
            raise FatalError(f"{path}: no such prompts file; check --prompts")
    fingerprinted = settings.model_dump(exclude={"paths"}) | {"files": [file_digest(path) for path in paths]}
    return workshop.make(STAGE, fingerprinted, {}, build)


def _drawn(prompts: Sequence[Prompt], settings: PromptsSettings) -> bytearray:
    """For each prompt 1 where it is in the sample: those whose turn, a number made of id and seed, comes first."""
    if settings.sample is None:
        return bytearray([1]) * len(prompts)
    turns = ((share(prompt.id, settings.seed, "sample"), number) for number, prompt in enumerate(prompts))
    drawn = bytearray(len(prompts))
    for _, number in heapq.nsmallest(settings.sample, turns):
        drawn[number] = 1
    return drawn
