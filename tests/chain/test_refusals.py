"""What loading the policy refuses, and where prompts are not shared: on real, tiny files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nothing_gpt.adapters import WEIGHTS, validate_adapter
from nothing_gpt.errors import FatalError
from nothing_gpt.policy import load_policy, load_tokenizer
from nothing_gpt.preferences import read_pairs
from nothing_gpt.training_data import tokenize
from tests.chain import tiny

pytestmark = [pytest.mark.chain, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may spoil."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return shutil.copytree(made, tmp_path / "model")


def refused(model: Path) -> str:
    with pytest.raises(FatalError) as error:
        load_policy(str(model / "base"), None, model / "sft", "none")
    assert "\n" not in str(error.value)
    return str(error.value)


def lose(weights: Path, lost: Callable[[str], bool]) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: tensor for name, tensor in load_file(weights).items() if not lost(name)}, weights)


def test_a_whole_adapter_is_loaded(model: Path) -> None:
    policy = load_policy(str(model / "base"), None, model / "sft", "none")
    assert policy.get_nb_trainable_parameters()[0] == validate_adapter(model / "sft").parameters


def test_an_adapter_that_lost_a_layer_is_refused_though_peft_would_make_one_up(model: Path) -> None:
    lose(model / "sft" / WEIGHTS, lambda name: "q_proj" in name)
    assert f"{model / 'sft' / WEIGHTS}: 2 of the 14 tensors" in refused(model)


def test_an_adapter_with_more_than_it_says_is_refused_though_peft_would_drop_it(model: Path) -> None:
    config = model / "sft" / "adapter_config.json"
    values = json.loads(config.read_text())
    values["target_modules"] = [name for name in values["target_modules"] if "q_proj" not in name]
    config.write_text(json.dumps(values))
    assert "and 2 are too many" in refused(model)


def test_memory_that_ran_out_is_not_blamed_on_the_adapter(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import PeftModel

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(PeftModel, "from_pretrained", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        load_policy(str(model / "base"), None, model / "sft", "none")


def test_cut_weights_of_the_base_are_one_line(model: Path) -> None:
    weights = model / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"the weights of the base model {model / 'base'} are cut or damaged" in refused(model)


def test_a_template_that_refuses_the_pairs_is_one_line(model: Path) -> None:
    (model / "base" / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(FatalError, match=r"refuses the pairs \(roles must alternate\)"):
        tokenize(load_tokenizer(str(model / "base"), None), read_pairs(model / "data" / "val.jsonl"))


def test_a_base_without_a_template_is_one_line(model: Path) -> None:
    (model / "base" / "chat_template.jinja").unlink()
    with pytest.raises(FatalError, match="has no chat template"):
        tokenize(load_tokenizer(str(model / "base"), None), read_pairs(model / "data" / "val.jsonl"))
