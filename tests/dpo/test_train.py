"""What training refuses to start with, and what names a run. The rest is shown in `tests/chain/test_training.py`."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from nothing_gpt.config import TrainingSettings
from nothing_gpt.dpo.train import check_output, fingerprint, label_smoothing, main
from nothing_gpt.errors import FatalError
from nothing_gpt.losses import flip_rate

GOOD = {
    "prompt": [{"role": "user", "content": "[ANNA] Well?"}],
    "chosen": [{"role": "assistant", "content": "[BEN] Yes."}],
    "rejected": [{"role": "assistant", "content": "[BEN] No."}],
}


def save_adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    values = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "nowhere"} | config
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file({"base_model.model.q.lora_A.weight": np.ones((2, 4), np.float32)}, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that `python -m nothing_gpt.dpo.train` ends with, given its files and changes of the adapter."""

    def refused(train_file: str | None, val_file: str | None = json.dumps(GOOD), **adapter: Any) -> str:
        places = {"SFT_ADAPTER_PATH": save_adapter(tmp_path / "sft", **adapter), "DPO_DATA_PATH": tmp_path,
                  "ADAPTER_PATH": tmp_path / "out"}  # fmt: skip
        for name, path in places.items():
            monkeypatch.setenv(name, str(path))
        for name, text in (("train.jsonl", train_file), ("val.jsonl", val_file)):
            if text is not None:
                (tmp_path / name).write_text(text)
        monkeypatch.setattr(sys, "argv", ["train"])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert not (tmp_path / "out").exists()
        return line

    return refused


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
def test_bad_pairs_end_it_with_one_clear_line(refused: Callable[..., str], text: str | None, complaint: str) -> None:
    assert complaint in refused(text)


def test_an_empty_validation_file_ends_it_with_one_clear_line(refused: Callable[..., str]) -> None:
    assert "val.jsonl: holds no pairs" in refused(json.dumps(GOOD), "")


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"r": 4}, "has shape (2, 4), but adapter_config.json says r=4"),
        ({"use_dora": True}, "use_dora is set, which vLLM cannot serve"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set, which vLLM cannot serve"),
    ],
)
def test_an_adapter_that_could_not_be_served_ends_it_with_one_clear_line(
    refused: Callable[..., str], config: dict[str, Any], complaint: str
) -> None:
    assert complaint in refused(json.dumps(GOOD), **config)


MEASURED = TrainingSettings(loss_type="robust", label_smoothing="measured")


def test_label_smoothing_is_the_setting_or_follows_from_the_judge_s_agreement(tmp_path: Path) -> None:
    assert label_smoothing(TrainingSettings(loss_type="robust", label_smoothing=0.2), tmp_path) == 0.2
    (tmp_path / "quality.json").write_text('{"agreement": 0.82}')
    assert label_smoothing(MEASURED, tmp_path) == pytest.approx(flip_rate(0.82)) == pytest.approx(0.1)


@pytest.mark.parametrize("text", [None, "{", "{}", '{"agreement": null}', "[]"])
def test_label_smoothing_that_was_not_measured_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "quality.json").write_text(text)
    with pytest.raises(FatalError, match="holds no agreement of the judge; set "):
        label_smoothing(MEASURED, tmp_path)


def test_a_run_is_named_by_all_that_decides_what_comes_of_it(tmp_path: Path) -> None:
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text(json.dumps(GOOD))
    adapter, other = save_adapter(tmp_path / "a"), save_adapter(tmp_path / "b", lora_alpha=64)
    settings = TrainingSettings()
    name = fingerprint(adapter, tmp_path, "base", None, settings)
    assert fingerprint(adapter, tmp_path, "base", None, settings.model_copy(update={"save_steps": 7})) == name
    measured = settings.model_copy(update={"loss_type": "robust", "label_smoothing": "measured"})
    (tmp_path / "quality.json").write_text('{"agreement": 0.9}')
    others = [
        fingerprint(adapter, tmp_path, "base", None, measured),
        fingerprint(other, tmp_path, "base", None, settings),
        fingerprint(adapter, tmp_path, "other", None, settings),
        fingerprint(adapter, tmp_path, "base", "c0ffee", settings),
        fingerprint(adapter, tmp_path, "base", None, settings.model_copy(update={"beta": 0.2})),
    ]
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD) * 2)
    others.append(fingerprint(adapter, tmp_path, "base", None, settings))
    (tmp_path / "quality.json").write_text('{"agreement": 0.6}')
    others.append(fingerprint(adapter, tmp_path, "base", None, measured))
    (tmp_path / "config.json").write_text("{}")
    for weights in (b"weights", b"WEIGHTS"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        others.append(fingerprint(adapter, tmp_path, str(tmp_path), None, settings))
    assert len({name, *others}) == 10


@pytest.mark.parametrize("place", ["file", "file/out", "file/a/out"])
def test_an_adapter_s_place_that_can_be_no_folder_is_refused_before_training(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FatalError, match=r"ADAPTER_PATH: .*/file is a file; give the path of a folder"):
        check_output(tmp_path / place)
    check_output(tmp_path)
    check_output(tmp_path / "new" / "out")
