"""Pairs as the trainer takes them: counted in tokens, fitted to the longest length, kept on disk by their content.

TRL keeps tokenised pairs and reference log-probabilities beside the file a data set was read from. So the pairs are
read from a file whose folder is named by their content: a retry finds there what an earlier attempt computed.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from nothing_gpt.errors import FatalError
from nothing_gpt.progress import say
from nothing_gpt.records import digest

if TYPE_CHECKING:
    from datasets import Dataset

AT_ONCE = 1_000
"""Pairs that are tokenised together: the tokenizer's own results take a hundred times the bytes of the ids."""

Row = dict[str, Any]
"""A pair in TRL's conversational format: `{prompt, chosen, rejected}`, each a list of messages."""


@dataclass(frozen=True)
class Tokens:
    """Token ids of a prompt with each of its completions, and how many of these are the prompt's."""

    prompt: int
    chosen: Sequence[int]
    rejected: Sequence[int]

    @property
    def longest(self) -> int:
        """Length of the longer of the two sequences."""
        return max(len(self.chosen), len(self.rejected))


def tokenize(tokenizer: Any, rows: list[Row]) -> list[Tokens]:
    """The token ids of every pair, 4 bytes each, as the tokenizer's chat template makes them.

    Raises:
        FatalError: the tokenizer has no chat template, or it refuses these messages.
    """
    base = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise FatalError(
            f"train: the base model {base} has no chat template; take one that was trained on chats, or put the "
            "template its adapter was trained with beside its tokenizer as chat_template.jinja"
        )

    def ids(conversations: list[Any], generation: bool = False) -> list["array[int]"]:
        try:
            texts = tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=generation)
        except (TemplateError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise FatalError(
                f"train: the chat template of the base model {base} refuses the pairs ({reason}); use only roles that "
                "it knows, in the order it wants"
            ) from None
        return [array("i", one) for one in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    tokens: list[Tokens] = []
    for start in range(0, len(rows), AT_ONCE):
        these = rows[start : start + AT_ONCE]
        prompts = ids([row["prompt"] for row in these], generation=True)
        chosen, rejected = (ids([row["prompt"] + row[side] for row in these]) for side in ("chosen", "rejected"))
        tokens += [Tokens(len(p), c, r) for p, c, r in zip(prompts, chosen, rejected, strict=True)]
    return tokens


def check_split(train: list[Row], val: list[Row]) -> None:
    """Says how many validation pairs have a prompt that is trained on: what is measured on them is partly memory.

    Raises:
        FatalError: all have.
    """
    trained_on = {digest(row["prompt"]) for row in train}
    shared = sum(digest(row["prompt"]) in trained_on for row in val)
    if shared == len(val):
        raise FatalError("val.jsonl: every prompt is in train.jsonl too, so it can validate nothing; split by prompt")
    if shared:
        say(f"train: {shared} of {len(val)} pairs in val.jsonl have a prompt of train.jsonl; split by prompt")


def check_tokens(tokens: list[Tokens], vocabulary: int, where: str) -> None:
    """Raises FatalError where pairs hold ids that the model does not know, or their sides are equal as the model sees
    them, with whatever the chat template trims or leaves out. `where` names them."""
    highest = max(max(*pair.chosen, *pair.rejected) for pair in tokens)
    if highest >= vocabulary:
        raise FatalError(
            f"{where}: the tokenizer makes token id {highest}, and the base model knows {vocabulary}; put the "
            "model's own tokenizer beside it"
        )
    alike = [number for number, pair in enumerate(tokens, 1) if pair.chosen == pair.rejected]
    if alike:
        raise FatalError(
            f"{where}: in {len(alike)} of {len(tokens)} pairs (the first is pair {alike[0]}) both sides are equal as "
            "the base model's chat template writes them; take them out"
        )


def fit(
    rows: list[Row], tokens: list[Tokens], max_length: int, long_pairs: str, counts: Counter[str], where: str
) -> list[Row]:
    """The pairs to train on, in their order. `counts` gets what became of the long ones: `dropped`, and `truncated`,
    which the trainer will cut at the completion's end; and `longest`, the tokens of the longest sequence that is left,
    here or in an earlier call.

    Raises:
        FatalError: pairs are too long and `long_pairs` is `refuse`, or none is left. `where` names them.
    """
    too_long = [i for i, pair in enumerate(tokens) if pair.longest > max_length]
    if too_long and long_pairs == "refuse":
        raise FatalError(
            f"{where}: {len(too_long)} of {len(rows)} pairs are longer than training.max_length = {max_length} tokens "
            f"(the longest has {max(pair.longest for pair in tokens)}); raise it, or set training.long_pairs to drop "
            "or truncate"
        )
    dropped = {i for i in too_long if long_pairs == "drop" or not _bears_cutting(tokens[i], max_length)}
    counts.update(dropped=len(dropped), truncated=len(too_long) - len(dropped))
    if len(dropped) == len(rows):
        raise FatalError(f"{where}: every pair is longer than training.max_length = {max_length} tokens; raise it")
    left = [i for i in range(len(rows)) if i not in dropped]
    counts["longest"] = max(counts["longest"], *(min(tokens[i].longest, max_length) for i in left))
    return [rows[i] for i in left]


def dataset(rows: list[Row], cache: Path) -> "Dataset":
    """The pairs as a data set that is read from a folder in `cache`, named by their content."""
    from datasets import Dataset

    folder = cache / digest([digest(row) for row in rows])[:16]
    if not folder.exists():
        half = folder.with_name(f".{folder.name}.half")
        Dataset.from_list(rows).save_to_disk(half)
        half.replace(folder)
    return Dataset.load_from_disk(folder)


def _bears_cutting(pair: Tokens, max_length: int) -> bool:
    """Whether something of the completions is left, and still tells them apart."""
    return pair.prompt < max_length and pair.chosen[:max_length] != pair.rejected[:max_length]
