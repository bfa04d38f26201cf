"""What training refuses to start with, and what names a run. The rest is shown in `tests/chain/test_training.py`."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from nothing_gpt.artifacts import Stage, Workshop
from nothing_gpt.bases import Base
from nothing_gpt.config import TrainingSettings
from nothing_gpt.dpo import recipe, train
from nothing_gpt.dpo.recipe import Training, label_smoothing
from nothing_gpt.dpo.train import fingerprint, main
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.loading import load_settings
from nothing_gpt.losses import flip_rate
from nothing_gpt.store import open_store
from tests.fake_vllm import save_base

OTHER = {"prompt": [{"role": "user", "content": "[ANNA] Why?"}]}
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
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `python -m nothing_gpt.dpo.train` on pairs, an adapter and its base, and returns the exit code."""

    def program(*arguments: str, **elsewhere: str) -> int:
        places = {"SFT_ADAPTER_PATH": "sft", "DPO_DATA_PATH": ".", "ADAPTER_PATH": "out"} | elsewhere
        for name, path in places.items():
            monkeypatch.setenv(name, str(tmp_path / path))
        for name in ("BASE_MODEL", "BASE_REVISION"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "val.jsonl").write_text(json.dumps(GOOD | OTHER))
    save_adapter(tmp_path / "sft", base_model_name_or_path=str(save_base(tmp_path / "base")))
    return program


@pytest.fixture
def refused(program: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that it ends with, given other files and changes of the adapter's configuration."""

    def refused(
        train_file: str | None = json.dumps(GOOD), val_file: str = json.dumps(GOOD | OTHER), **adapter: Any
    ) -> str:
        (tmp_path / "val.jsonl").write_text(val_file)
        (tmp_path / "train.jsonl").unlink()
        if train_file is not None:
            (tmp_path / "train.jsonl").write_text(train_file)
        config = tmp_path / "sft" / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | adapter))
        assert program() == 1
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
def test_bad_pairs_end_it_with_one_clear_line_before_anything_else_is_done(
    refused: Callable[..., str], text: str | None, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "validate_adapter", lambda *_: pytest.fail("torch was imported"))
    assert complaint in refused(text)
    assert not list(tmp_path.glob(".out*"))


def test_a_base_that_may_change_is_refused(refused: Callable[..., str]) -> None:
    line = refused(base_model_name_or_path="some/base")
    assert "base model some/base: a hub name, behind which a model may change; give the commit" in line


def test_an_adapter_that_names_no_base_wants_one(refused: Callable[..., str]) -> None:
    assert "names no base model; give it (BASE_MODEL" in refused(base_model_name_or_path=None)


def test_an_empty_validation_file_ends_it_with_one_clear_line(refused: Callable[..., str]) -> None:
    assert "val.jsonl: holds no pairs" in refused(val_file="")


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"r": 4}, "has rank 2, but by r and rank_pattern of adapter_config.json it has 4"),
        ({"use_dora": True}, "use_dora is True, which vLLM cannot serve"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head'], which vLLM cannot serve"),
    ],
)
def test_an_adapter_that_could_not_be_served_ends_it_with_one_clear_line(
    refused: Callable[..., str], config: dict[str, Any], complaint: str
) -> None:
    assert complaint in refused(**config)


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
    base, settings = Base("base", "base"), TrainingSettings()
    name = fingerprint(adapter, tmp_path, base, settings)
    assert fingerprint(adapter, tmp_path, base, settings.model_copy(update={"save_steps": 7})) == name
    assert fingerprint(adapter, tmp_path, Base("moved", "base"), settings) == name
    measured = settings.model_copy(update={"loss_type": "robust", "label_smoothing": "measured"})
    (tmp_path / "quality.json").write_text('{"agreement": 0.9}')
    others = [
        fingerprint(adapter, tmp_path, base, measured),
        fingerprint(other, tmp_path, base, settings),
        fingerprint(adapter, tmp_path, Base("base", "other"), settings),
        fingerprint(adapter, tmp_path, base, settings.model_copy(update={"beta": 0.2})),
    ]
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD) * 2)
    others.append(fingerprint(adapter, tmp_path, base, settings))
    (tmp_path / "quality.json").write_text('{"agreement": 0.6}')
    others.append(fingerprint(adapter, tmp_path, base, measured))
    assert len({name, *others}) == 7


def test_two_runs_never_share_a_work_folder_whatever_is_given(
    program: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in one would be gone on from by the other, and the whole folder goes with the first that ends."""
    given: list[Training] = []
    monkeypatch.setattr(train, "recipe", given.append)
    for beta in (0.1, 0.2):
        (tmp_path / "settings.json").write_text(json.dumps({"training": {"beta": beta}}))
        assert program("--work", str(tmp_path / "w"), "--settings", str(tmp_path / "settings.json")) == 0
    assert [training.work for training in given] == [tmp_path / "w" / f".out.{training.run}" for training in given]
    assert given[0].run != given[1].run
    assert program("--run", "its-name", "--settings", str(tmp_path / "settings.json")) == 0
    assert (given[2].run, given[2].made_of) == ("its-name", given[1].made_of)


@pytest.mark.parametrize(("visible", "used"), [("2,3", "2"), ("", "")])
def test_of_several_devices_it_sees_one(
    program: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, used: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("nothing_gpt.devices.LOCKS", tmp_path)
    monkeypatch.setattr(train, "recipe", lambda _: None)
    assert program() == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == used


def test_a_work_folder_that_is_given_is_never_itself_deleted(
    program: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held the adapter that was just published, or whatever else was there."""
    monkeypatch.setattr(recipe, "_recipe", lambda training, *_: training.output.mkdir())
    assert program("--work", str(tmp_path)) == 0
    assert (tmp_path / "out").is_dir()
    assert (tmp_path / "train.jsonl").is_file()
    assert not list(tmp_path.glob(".out*"))


def test_what_is_read_is_not_where_the_adapter_goes(
    program: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "recipe", lambda _: pytest.fail("it begins"))
    for place in ("sft", ".", "base"):
        assert program(ADAPTER_PATH=place) == 1
        assert " in it is read; give a new folder" in capsys.readouterr().err


def test_alone_it_starts_from_no_version(
    program: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text('{"training": {"starting_version": 2}}')
    assert program("--settings", str(tmp_path / "settings.json")) == 1
    assert "training alone starts from the adapter that it is given" in capsys.readouterr().err


def test_as_a_stage_the_adapter_is_that_of_the_version(tmp_path: Path, workshop: Workshop) -> None:
    given: list[dict[str, Any]] = []

    def run(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        given.append(load_settings(Path(arguments[1])).training.model_dump())
        raise FatalError("seen")

    (tmp_path / "x").touch()
    pairs, adapter = (workshop.adopt(Stage(name, 1), {"x": tmp_path / "x"}) for name in ("pairs", "adapter"))
    settings = TrainingSettings(starting_version=2, beta=0.3)
    with pytest.raises(FatalError, match="seen"):
        train.train(workshop, pairs, adapter, Base("base", "base"), settings, run)
    assert given == [settings.model_dump() | {"starting_version": 0}]


@pytest.mark.parametrize("published", [True, False])
def test_another_machine_of_a_group_ends_when_the_first_has_published(
    tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    """Otherwise the one in the first's place would wait for it in vain."""
    monkeypatch.setattr(train, "PUBLISHED_S", 600 if published else 0)
    (tmp_path / "x").touch()
    pairs, adapter = (workshop.adopt(Stage(name, 1), {"x": tmp_path / "x"}) for name in ("pairs", "adapter"))
    base, settings, ran = Base("base", "base"), TrainingSettings(nodes=2), list[str]()
    inputs = {"pairs": pairs, "adapter": adapter}

    def run(module: str, *_: Any) -> None:
        ran.append(module)
        if published:
            workshop.make(train.STAGE, train.fingerprinted(settings, base), inputs, lambda folder: {"rows": 1})

    with nullcontext() if published else pytest.raises(TransientError, match="publishes nothing; run again"):
        train.take_part(workshop, pairs, adapter, base, settings, run)
    if published:
        train.take_part(workshop, pairs, adapter, base, settings, run)  # by a pod that comes late
    assert ran == [train.MODULE]


@pytest.mark.parametrize("named", [False, True])
def test_the_store_s_copies_go_with_the_end_of_a_run_unless_another_named_it(
    program: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    store = open_store(str(tmp_path / "store"))
    monkeypatch.setattr(train, "recipe", lambda training: store.write(f"checkpoints/{training.run}/x", b""))
    assert program("--store", store.uri, *(["--run", "its-name"] if named else [])) == 0
    assert list(store.list("checkpoints")) == (["checkpoints/its-name/x"] if named else [])
