"""The pairs' files as those who train on them read them: `datasets` loads them, and TRL finds its own format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.config import JudgeSettings
from nothing_gpt.preferences import TRAIN, VAL, JudgedSet, write_pairs
from nothing_gpt.records import CompletionSet, Message, Prompt
from tests.samples import prompt, verdict

pytestmark = pytest.mark.chain
TEXTS = ["[PIP] Nó — “never”.\n[OONA] 語\u2028next", '[PIP] {"a": [1]} </script>', "[PIP] Maybe."]


def judged() -> Iterator[JudgedSet]:
    """Sets with and without a system message, of one turn and of several, with characters that break lines."""
    for number in range(200):
        conversation = prompt(f"scene {number}").messages[number % 2 :]
        if number % 3 == 0:
            conversation.append(Message(role="assistant", content="[PIP] Yes."))
            conversation.append(Message(role="user", content="And then?"))
        item = CompletionSet(Prompt.of(conversation), TEXTS, [False] * 3)
        yield JudgedSet(item, [verdict(number % 3, (number + 1) % 3)] * 2)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from datasets import load_dataset

    folder = tmp_path_factory.mktemp("pairs")
    split = write_pairs(judged(), folder, JudgeSettings(val_ratio=0.3))
    files = {"train": str(folder / TRAIN), "val": str(folder / VAL)}
    made = load_dataset("json", data_files=files, cache_dir=str(folder / "cache"))
    assert {name: len(rows) for name, rows in made.items()} == {"train": split.train, "val": split.val}
    return made


def test_both_sides_have_one_and_the_same_form(loaded: Any) -> None:
    assert loaded["train"].column_names == ["prompt", "chosen", "rejected"]
    assert loaded["train"].features == loaded["val"].features


def test_trl_sees_conversations_with_an_explicit_prompt(loaded: Any) -> None:
    from trl.data_utils import extract_prompt, is_conversational, maybe_extract_prompt

    for row in (*loaded["train"], *loaded["val"]):
        assert is_conversational(row)
        assert maybe_extract_prompt(row) == row
        joined = {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
        assert extract_prompt(joined) == row


def test_texts_come_back_as_they_were(loaded: Any) -> None:
    texts = {row[side][0]["content"] for row in loaded["train"] for side in ("chosen", "rejected")}
    assert texts == set(TEXTS)


def test_dpo_trainer_takes_the_rows_as_they_are(loaded: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    symbols = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    by_bytes = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    by_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=by_bytes, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    size: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=len(symbols), **size)).save_pretrained(tmp_path / "model")
    trainer = DPOTrainer(
        model=str(tmp_path / "model"),
        processing_class=tokenizer,
        train_dataset=loaded["train"],
        eval_dataset=loaded["val"],
        args=DPOConfig(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, max_length=2048),
    )
    rows: Any = trainer.train_dataset
    assert len(rows) == len(loaded["train"])
    assert rows[0]["chosen_ids"][-1] == tokenizer.eos_token_id
    assert rows[0]["chosen_ids"] != rows[0]["rejected_ids"]
