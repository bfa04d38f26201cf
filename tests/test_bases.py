"""A base model is known by what it is, not by where it lies."""

import shutil
from pathlib import Path

import pytest

from nothing_gpt.bases import known_base
from nothing_gpt.errors import FatalError
from tests.fake_vllm import save_base


def test_a_folder_is_known_by_its_files_wherever_it_lies(tmp_path: Path) -> None:
    one = save_base(tmp_path / "one")
    other = shutil.copytree(one, tmp_path / "other")
    assert known_base(str(one), None).identity == known_base(str(other), None).identity
    (other / "config.json").write_text('{"hidden_size": 1}')
    (one / "model.safetensors").write_bytes(b"weights")
    identity = known_base(str(one), None).identity
    assert identity != known_base(str(other), None).identity
    (one / "model.safetensors").write_bytes(b"WEIGHTS")
    assert identity != known_base(str(one), None).identity


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "vocab.json", "merges.txt"],
)
def test_its_tokenizer_and_chat_template_belong_to_it(tmp_path: Path, name: str) -> None:
    base = save_base(tmp_path / "base")
    identities = [known_base(str(base), None).identity]
    for text in ("one", "two"):
        (base / name).write_text(text)
        identities.append(known_base(str(base), None).identity)
    assert len(set(identities)) == 3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_so_do_its_weights_wherever_they_differ(tmp_path: Path, share: float) -> None:
    """By a layer, of which none is a 64th of the model: a fine-tuned model differs from its base in all."""
    size = 16 << 20
    base = save_base(tmp_path / "base")
    identity = ""
    for byte in (b"1", b"2"):
        with (base / "model.safetensors").open("wb") as file:
            file.truncate(size)
            file.seek(int(share * (size - (size >> 5))))
            file.write(byte * (size >> 5))
        previous, identity = identity, known_base(str(base), None).identity
        assert identity != previous


def test_a_hub_model_is_known_by_its_commit(tmp_path: Path) -> None:
    base = known_base("meta-llama/Llama-3.2-3B", "c0ffee")
    assert (base.location, base.revision) == ("meta-llama/Llama-3.2-3B", "c0ffee")
    assert base.identity != known_base("meta-llama/Llama-3.2-3B", "decaf").identity


def test_a_hub_name_without_a_commit_is_refused() -> None:
    with pytest.raises(FatalError, match=r"a hub name, behind which a model may change; give the commit"):
        known_base("meta-llama/Llama-3.2-3B", None)


@pytest.mark.parametrize("location", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_path_that_is_no_model_s_folder_is_refused(location: str) -> None:
    with pytest.raises(FatalError, match="and no hub name"):
        known_base(location, None)
