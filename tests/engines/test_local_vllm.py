"""The embedded vLLM: how it fails without one, and what a real one serves."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from nothing_gpt.embedded.serving import SERVER_PYTHON, LocalVLLM
from nothing_gpt.errors import FatalError
from nothing_gpt.vllm_admin import VLLM

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
