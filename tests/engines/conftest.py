"""A real vLLM, which the tests of this room share, and models small enough for it."""

import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nothing_gpt.embedded.serving import LocalVLLM
from nothing_gpt.vllm_admin import VLLM

MARK = uuid.uuid4().hex


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of 0.5 M parameters, `base`, and random adapters, `a`, `b` and `c`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models")
    special = ["<pad>", "<bos>", "<eos>"]
    vocabulary = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    characters = Tokenizer(BPE({token: i for i, token in enumerate(vocabulary)}, []))
    characters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    characters.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    for name in ("a", "b", "c"):
        base = LlamaForCausalLM.from_pretrained(folder / "base")
        # Not initialised as for training, which makes B zero and the adapter mute.
        lora = LoraConfig(r=8, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(base, lora).save_pretrained(str(folder / name))
    return folder


@pytest.fixture(scope="session")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalVLLM]:
    """Leaving its block leaves no process behind."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STARTED_BY", MARK)
        with LocalVLLM(models / "base", tmp_path_factory.mktemp("logs") / "log", served_name="tiny") as vllm:
            yield vllm
            assert len(marked_processes()) >= 3  # the leash, the API server, the engine
    deadline = time.monotonic() + 5
    while marked_processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not marked_processes()


def marked_processes() -> list[int]:
    """Every process that the `server` fixture started, however far down, by the environment it inherited."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is not ours
            if f"STARTED_BY={MARK}".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


@pytest.fixture
def admin(server: LocalVLLM) -> Iterator[VLLM]:
    """The running server, with no adapter before and after a test."""
    vllm = VLLM(server.base_url)
    yield vllm
    for name in vllm.models():
        if name != "tiny":
            vllm.unload(name)
