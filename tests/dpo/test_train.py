"""The training recipe's own judgements: what the loss is before the first update, and what it refuses to start with."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nothing_gpt.dpo.train import loss_at_reference
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("loss_type", ["sigmoid", "robust", "sigmoid_norm"])
def test_the_usual_losses_are_ln_2_where_policy_and_reference_agree(loss_type: str) -> None:
    assert loss_at_reference(loss_type, beta=0.1) == pytest.approx(math.log(2))


def test_other_losses_have_a_value_of_their_own_there() -> None:
    assert loss_at_reference("hinge", beta=0.1) == 1
    assert loss_at_reference("apo_zero", beta=0.1) == 1
    assert loss_at_reference("ipo", beta=0.1) == pytest.approx(25)


GOOD = {
    "prompt": [{"role": "user", "content": "[ANNA] Well?"}],
    "chosen": [{"role": "assistant", "content": "[BEN] Yes."}],
    "rejected": [{"role": "assistant", "content": "[BEN] No."}],
}


def train(
    folder: Path, train_file: str | None, val_file: str | None = json.dumps(GOOD)
) -> "subprocess.CompletedProcess[str]":
    adapter = folder / "sft"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "base_model_name_or_path": "nowhere"})
    )
    save_file({"base_model.model.q.lora_A.weight": np.ones((2, 4), np.float32)}, adapter / "adapter_model.safetensors")
    for name, text in (("train.jsonl", train_file), ("val.jsonl", val_file)):
        if text is not None:
            (folder / name).write_text(text)
    places = {"SFT_ADAPTER_PATH": adapter, "ADAPTER_PATH": folder / "out", "DPO_DATA_PATH": folder}
    return subprocess.run(
        [sys.executable, "-m", "nothing_gpt.dpo.train"],
        env=os.environ | {name: str(path) for name, path in places.items()} | {"HF_HUB_OFFLINE": "1"},
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "train.jsonl: cannot read it"),
        ("", "holds no pairs"),
        ("{", "line 1: not JSON"),
        (json.dumps(GOOD | {"rejected": GOOD["chosen"]}), "chosen and rejected are equal"),
        (json.dumps(GOOD | {"rejected": [{"role": "assistant", "content": " "}]}), "an empty assistant message"),
        (json.dumps(GOOD | {"chosen": [{"role": "tool", "content": "x"}]}), "unknown role 'tool'"),
        (json.dumps(GOOD | {"chosen": GOOD["prompt"]}), "must each be one assistant message"),
    ],
)
def test_bad_pairs_end_it_with_one_clear_line(tmp_path: Path, text: str | None, complaint: str) -> None:
    ended = train(tmp_path, text)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert complaint in line
    assert not (tmp_path / "out").exists()


def test_an_empty_validation_file_ends_it_with_one_clear_line(tmp_path: Path) -> None:
    ended = train(tmp_path, json.dumps(GOOD), "")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert "val.jsonl: holds no pairs" in ended.stderr


def test_a_base_model_that_is_nowhere_ends_it_with_one_clear_line(tmp_path: Path) -> None:
    ended = train(tmp_path, json.dumps(GOOD))
    assert (ended.returncode, ended.stderr.splitlines()[-1][:44]) == (1, "error: train: the base model nowhere cannot ")
    assert "Traceback" not in ended.stderr
