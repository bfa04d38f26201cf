"""The embedded vLLM: how it fails without one, and that a real one starts, swaps adapters and ends."""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from statistics import median

import httpx
import pytest

from nothing_gpt.adapters import CONFIG, WEIGHTS
from nothing_gpt.artifacts import Stage, Workshop
from nothing_gpt.embedded.serving import SERVER_PYTHON, LocalVLLM
from nothing_gpt.errors import FatalError
from nothing_gpt.serve.promote import Candidate, promote, roll_back
from nothing_gpt.serve.registry import Approval, Rollback, read_registry
from nothing_gpt.serve.switch import Server
from nothing_gpt.store import open_store
from nothing_gpt.vllm_admin import VLLM

MARK = uuid.uuid4().hex
PROMPT = [{"role": "user", "content": "What is the deal with soup? " * 12}]


def stand_in(folder: Path, script: str) -> str:
    """A program in the place of the server environment's Python."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_without_a_server_environment_it_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVER_PYTHON, str(tmp_path / "missing"))
    with pytest.raises(FatalError, match="run `make server-env`"), LocalVLLM(tmp_path, tmp_path / "log"):
        pass


def test_the_server_environment_is_looked_for_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SERVER_PYTHON, raising=False)
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(FatalError, match=r"\.venv-server/bin/python does not exist"),
        LocalVLLM(tmp_path, tmp_path / "log"),
    ):
        pass


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("api_server.py: error: argument --port: invalid\\n", "error: argument --port: invalid;"),
        (
            "(Engine) ERROR 11-21 [core.py:1] ValueError: bad rank\\nRuntimeError: Engine core failed",
            "ValueError: bad rank;",
        ),
        (
            "pydantic.ValidationError: 1 validation error for X\\n  Value error, no such folder\\n  see url",
            "pydantic.ValidationError: 1 validation error for X Value error, no such folder;",
        ),
        ("python: No module named vllm", "python: No module named vllm;"),
        ("", "it wrote nothing to its log;"),
    ],
)
def test_a_server_that_ends_at_its_start_is_an_error_with_the_first_cause_in_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, reason: str
) -> None:
    monkeypatch.setenv(SERVER_PYTHON, stand_in(tmp_path, f"printf '{log}'; exit 1"))
    with pytest.raises(FatalError) as caught, LocalVLLM(tmp_path, tmp_path / "log"):
        pass
    assert str(caught.value) == f"vLLM did not start: {reason} see {tmp_path / 'log'}"


def test_a_port_where_another_server_answers_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

    monkeypatch.setenv(SERVER_PYTHON, stand_in(tmp_path, "sleep 60"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with (
            pytest.raises(FatalError, match="another server answers"),
            LocalVLLM(tmp_path, tmp_path / "log", port=other.server_port),
        ):
            pass
        other.shutdown()
    assert not (tmp_path / "log").exists()


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalVLLM]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STARTED_BY", MARK)
        with LocalVLLM(models / "base", tmp_path_factory.mktemp("logs") / "log", served_name="tiny") as vllm:
            yield vllm


def marked_processes() -> list[str]:
    """Every process that the `server` fixture started, however far down, by the environment it inherited."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            if f"STARTED_BY={MARK}".encode() in (process / "environ").read_bytes():
                found.append(process.name)
    return found


@pytest.fixture
def admin(server: LocalVLLM) -> Iterator[VLLM]:
    """The running server, with no adapter before and after a test."""
    vllm = VLLM(server.base_url)
    yield vllm
    for name in vllm.models():
        if name != "tiny":
            vllm.unload(name)


def completions(server: LocalVLLM, model: str, **options: object) -> list[str]:
    body = {"model": model, "messages": PROMPT, "max_tokens": 16, "ignore_eos": True, **options}
    response = httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=120)
    response.raise_for_status()
    return [choice["message"]["content"] for choice in response.json()["choices"]]


def greedy(server: LocalVLLM, model: str) -> str:
    return completions(server, model, temperature=0)[0]


@pytest.mark.vllm
def test_the_base_is_served_under_its_name_from_its_folder(server: LocalVLLM, admin: VLLM, models: Path) -> None:
    assert admin.models() == {"tiny": str(models / "base")}


@pytest.mark.vllm
def test_an_adapter_loaded_under_a_versioned_name_answers_otherwise_than_the_base(
    server: LocalVLLM, admin: VLLM, models: Path
) -> None:
    admin.load("seinfeld-v1", str(models / "a"))
    assert admin.models()["seinfeld-v1"] == str(models / "a")
    assert greedy(server, "seinfeld-v1") != greedy(server, "tiny")


@pytest.mark.vllm
def test_a_swap_in_place_gives_the_stable_name_the_new_adapters_answers_at_once(
    server: LocalVLLM, admin: VLLM, models: Path
) -> None:
    admin.load("seinfeld", str(models / "a"))
    admin.load("seinfeld-v2", str(models / "b"))
    before = greedy(server, "seinfeld")
    admin.load("seinfeld", str(models / "b"), in_place=True)
    assert admin.models()["seinfeld"] == str(models / "b")
    assert greedy(server, "seinfeld") == greedy(server, "seinfeld-v2") != before


@pytest.mark.vllm
def test_an_unloaded_adapter_is_no_longer_served(server: LocalVLLM, admin: VLLM, models: Path) -> None:
    admin.load("seinfeld", str(models / "a"))
    admin.unload("seinfeld")
    assert list(admin.models()) == ["tiny"]


@pytest.mark.vllm
def test_real_refusals_are_told_apart(server: LocalVLLM, admin: VLLM, models: Path, tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="no adapter there on the server"):
        admin.load("seinfeld", str(tmp_path / "nowhere"))
    with pytest.raises(FatalError, match="serves no adapter 'seinfeld'; it serves tiny"):
        admin.unload("seinfeld")
    admin.load("seinfeld", str(models / "a"))
    with pytest.raises(FatalError, match="already serves 'seinfeld'"):
        admin.load("seinfeld", str(models / "b"))
    config = (models / "a" / "adapter_config.json").read_text()
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide" / "adapter_config.json").write_text(config.replace('"r": 8', '"r": 128'))
    (tmp_path / "wide" / "adapter_model.safetensors").symlink_to(models / "a" / "adapter_model.safetensors")
    with pytest.raises(FatalError, match="rank 128 is above the server's maximum of"):
        admin.load("wide", str(tmp_path / "wide"))


@pytest.mark.vllm
def test_seeded_samples_of_many_requests_at_once_repeat_and_the_server_survives_them(
    server: LocalVLLM, admin: VLLM, models: Path
) -> None:
    admin.load("seinfeld", str(models / "a"))

    def sample(seed: int) -> list[str]:
        options = {"n": 3, "temperature": 0.9, "frequency_penalty": 0.5, "seed": seed}
        # Together longer than one step's budget of tokens, which is what ended vLLM 0.32's CPU engine.
        prompt = [{"role": "user", "content": f"{seed} " * 400}]
        return completions(server, "seinfeld", messages=prompt, **options)

    with ThreadPoolExecutor(30) as pool:
        first = list(pool.map(sample, range(30)))
    assert VLLM(server.base_url).health()
    assert sample(7) == first[7]
    assert len({text for texts in first for text in texts}) > 30


@pytest.mark.vllm
def test_a_json_schema_constrains_even_a_random_model(server: LocalVLLM, admin: VLLM) -> None:
    schema = {
        "type": "object",
        "properties": {"best": {"type": "string", "enum": ["A", "B"]}},
        "required": ["best"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema, "strict": True}}
    text = completions(server, "tiny", response_format=form, max_tokens=40, ignore_eos=False)[0]
    assert json.loads(text)["best"] in ("A", "B")


Answer = dict[str, float]
"""The likeliest first tokens of a greedy answer, with log-probabilities, which batches of other sizes hardly move."""


def first_tokens(server: LocalVLLM, model: str) -> Answer:
    body = {"model": model, "messages": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    response = httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=120)
    response.raise_for_status()
    likely = response.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {token["token"]: token["logprob"] for token in likely}


def distance(one: Answer, other: Answer) -> float:
    return max(abs(logprob - other.get(token, -100.0)) for token, logprob in one.items())


@dataclass
class Traffic:
    """Requests to `seinfeld` without a pause: each one's answer, and how many switches had returned when it was
    sent."""

    server: LocalVLLM
    switches: int = 0
    answers: list[tuple[int, Answer]] = field(default_factory=list)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                sent = self.switches
                self.answers.append((sent, first_tokens(self.server, "seinfeld")))

        with ThreadPoolExecutor() as pool:
            client = pool.submit(ask)
            try:
                yield
            finally:
                stop.set()
            client.result()  # raises what a request failed with

    def switched(self) -> None:
        """A switch has returned; returns once some requests were sent after it and answered."""
        self.switches += 1
        deadline = time.monotonic() + 60
        while sum(sent == self.switches for sent, _ in list(self.answers)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_through_20_promotions_and_5_rollbacks_no_request_fails_and_none_is_answered_by_a_former_adapter(
    server: LocalVLLM, admin: VLLM, models: Path, tmp_path: Path
) -> None:
    workshop = Workshop(open_store(str(tmp_path / "store")), tmp_path / "work")
    folders = {name: adopted(workshop, models / name) for name in ("a", "b", "c")}
    live = Server(server.base_url, "seinfeld", models / "base")
    for name, folder in folders.items():
        admin.load(name, str(folder))
    own = {name: first_tokens(server, name) for name in folders}
    assert min(distance(own[one], own[other]) for one, other in ("ab", "bc", "ca")) > 1
    admin.load("seinfeld", str(folders["c"]))  # the starting adapter
    approval = Approval(by="anna", reason="a test", at=0)  # which promotes also what was taken back
    candidates = {
        name: Candidate(folders[name], f"sft/{folders[name].name}", name, "local", {}, [], approval) for name in "ab"
    }
    rollback = Rollback(by="anna", reason="a test", at=0)
    serving, seconds = ["c"], []
    with (traffic := Traffic(server)).flowing():
        for number in range(25):
            started = time.monotonic()
            if number % 5 == 4:
                roll_back(workshop, rollback, folders["c"], live)
            else:
                promote(workshop, candidates["b" if serving[-1] == "a" else "a"], folders["c"], live)
            seconds.append(time.monotonic() - started)
            serving.append(next(name for name in own if live.root == str(folders[name])))
            traffic.switched()
    assert len(read_registry(workshop.store).versions) == 20
    assert all(one != other for one, other in pairwise(serving))
    answered = [(sent, min(own, key=lambda name: distance(own[name], answer))) for sent, answer in traffic.answers]
    for sent, name in answered:
        assert name in serving[sent : sent + 2]  # the next one's too: a switch may be at work
    assert {sent for sent, name in answered if name == serving[sent]} >= set(range(1, 26))
    print(f"{len(answered)} answers; a switch took {median(seconds):.2f} s, at most {max(seconds):.2f} s")


def adopted(workshop: Workshop, adapter: Path) -> Path:
    files = {name: adapter / name for name in (CONFIG, WEIGHTS)}
    return workshop.folder(workshop.adopt(Stage("sft", 1), files))


# Last in this file, as it ends the server that the others share.
@pytest.mark.vllm
def test_leaving_the_block_leaves_no_process_behind(server: LocalVLLM) -> None:
    assert len(marked_processes()) >= 3  # the leash, the API server, the engine
    server.__exit__()
    deadline = time.monotonic() + 5
    while marked_processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not marked_processes()
