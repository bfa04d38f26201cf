"""The admin side of vLLM, against a server that answers as vLLM 0.32 does (its error texts are copied)."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.processes import free_port
from nothing_gpt.vllm_admin import VLLM

MODELS = {
    "object": "list",
    "data": [
        {"id": "base", "root": "/models/base", "parent": None},
        {"id": "seinfeld", "root": "/adapters/v1", "parent": "base"},
    ],
}


class FakeVLLM(ThreadingHTTPServer):
    """Answers each route with what a test has set, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, Any]] = {"/health": (200, ""), "/v1/models": (200, MODELS)}
        self.asked: list[tuple[str, Any, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def fails(self, route: str, status: int, message: str) -> None:
        self.answers[route] = (status, {"error": {"message": message, "param": None, "code": status}})


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, FakeVLLM)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        question = json.loads(body) if body else None
        self.server.asked.append((self.path, question, self.headers["Authorization"]))
        status, answer = self.server.answers.get(self.path, (404, {"detail": "Not Found"}))
        payload = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FakeVLLM]:
    with FakeVLLM() as fake:
        threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield fake
        fake.shutdown()


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_models_are_known_with_the_path_each_comes_from_whatever_the_address_ends_in(
    server: FakeVLLM, ending: str
) -> None:
    assert VLLM(server.url + ending).models() == {"base": "/models/base", "seinfeld": "/adapters/v1"}


def test_the_api_key_is_sent_as_a_bearer_token(server: FakeVLLM) -> None:
    VLLM(server.url, api_key="secret").models()
    assert server.asked == [("/v1/models", None, "Bearer secret")]


def test_the_line_end_of_a_key_is_not_sent(server: FakeVLLM) -> None:
    VLLM(server.url, api_key="secret\n").models()
    assert server.asked == [("/v1/models", None, "Bearer secret")]


@pytest.mark.parametrize("key", ["sk-1\nsk-2", "sk-\xe9", "sk\x00"])
def test_a_key_that_can_be_none_is_fatal_and_not_shown(server: FakeVLLM, key: str) -> None:
    with pytest.raises(FatalError, match="the key for it holds characters that no key has") as caught:
        VLLM(server.url, api_key=key).models()
    assert "sk" not in str(caught.value)
    assert not server.asked


def test_without_an_api_key_none_is_sent(server: FakeVLLM) -> None:
    VLLM(server.url).models()
    assert server.asked == [("/v1/models", None, None)]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_load_names_the_adapter_and_its_path_and_replaces_one_only_on_request(
    server: FakeVLLM, in_place: bool
) -> None:
    server.answers["/v1/load_lora_adapter"] = (200, "Success")
    VLLM(server.url).load("seinfeld", "/adapters/v2", in_place=in_place)
    body = {"lora_name": "seinfeld", "lora_path": "/adapters/v2", "load_inplace": in_place}
    assert server.asked == [("/v1/load_lora_adapter", body, None)]


def test_an_unload_names_the_adapter(server: FakeVLLM) -> None:
    server.answers["/v1/unload_lora_adapter"] = (200, "Success")
    VLLM(server.url).unload("seinfeld")
    assert server.asked == [("/v1/unload_lora_adapter", {"lora_name": "seinfeld"}, None)]


def test_a_server_that_allows_no_runtime_loading_says_how_to_allow_it(server: FakeVLLM) -> None:
    with pytest.raises(FatalError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        VLLM(server.url).load("seinfeld", "/adapters/v2")
    with pytest.raises(FatalError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        VLLM(server.url).unload("seinfeld")


def test_a_path_that_the_server_cannot_see_is_named(server: FakeVLLM) -> None:
    message = "Loading lora seinfeld failed: No adapter found for /adapters/v2"
    server.fails("/v1/load_lora_adapter", 404, message)
    with pytest.raises(FatalError, match="/adapters/v2: no adapter there on the server"):
        VLLM(server.url).load("seinfeld", "/adapters/v2")


def test_a_rank_above_the_servers_maximum_gives_both_numbers_and_the_option(server: FakeVLLM) -> None:
    message = "Call to add_lora method failed: LoRA rank 64 is greater than max_lora_rank 32."
    server.fails("/v1/load_lora_adapter", 500, message)
    with pytest.raises(FatalError, match=r"rank 64 is above the server's maximum of 32.*--max-lora-rank 64"):
        VLLM(server.url).load("seinfeld", "/adapters/v2")


def test_an_adapter_that_the_server_cannot_take_is_fatal_with_the_servers_reason(server: FakeVLLM) -> None:
    server.fails("/v1/load_lora_adapter", 500, "vLLM does not yet support DoRA.")
    with pytest.raises(FatalError, match=r"cannot load .*/adapters/v2.*DoRA"):
        VLLM(server.url).load("seinfeld", "/adapters/v2")


def test_a_name_that_is_taken_is_fatal_and_says_what_else_there_is(server: FakeVLLM) -> None:
    server.fails("/v1/load_lora_adapter", 400, "The lora adapter 'seinfeld' has already been loaded. If ...")
    with pytest.raises(FatalError, match=r"already serves 'seinfeld'.*in place"):
        VLLM(server.url).load("seinfeld", "/adapters/v2")


def test_unloading_what_is_not_served_lists_what_is(server: FakeVLLM) -> None:
    server.fails("/v1/unload_lora_adapter", 404, "The lora adapter 'other' cannot be found.")
    with pytest.raises(FatalError, match="serves no adapter 'other'; it serves base, seinfeld"):
        VLLM(server.url).unload("other")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_fatal_and_not_shown(server: FakeVLLM, status: int) -> None:
    server.answers["/v1/models"] = (status, {"error": "Unauthorized"})
    with pytest.raises(FatalError, match="refuses the API key") as caught:
        VLLM(server.url, api_key="secret").models()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("answer", [(400, "no secret given"), (500, "x" * 190 + " secret"), (200, "<p>secret</p>")])
def test_a_key_that_the_server_repeats_is_not_shown(server: FakeVLLM, answer: tuple[int, str]) -> None:
    server.answers["/v1/models"] = answer
    with pytest.raises((FatalError, TransientError), match=r"\*\*\*") as caught:
        VLLM(server.url, api_key="secret\n").models()
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://me:secret@127.0.0.1:1", "http://me:se@cret@127.0.0.1:1/v1"])
def test_a_password_in_the_address_is_fatal_and_not_shown(address: str) -> None:
    with pytest.raises(FatalError, match="as a key, not in the address") as caught:
        VLLM(address).models()
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 502, 503])
def test_an_overloaded_server_is_transient(server: FakeVLLM, status: int) -> None:
    server.answers["/v1/load_lora_adapter"] = (status, "try later")
    with pytest.raises(TransientError, match=f"{status}: try later"):
        VLLM(server.url).load("seinfeld", "/adapters/v2")


def test_an_address_where_nothing_listens_is_transient() -> None:
    with pytest.raises(TransientError, match="nothing answers at"):
        VLLM(f"http://127.0.0.1:{free_port()}").models()


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://host"])
def test_what_is_no_address_is_fatal(address: str) -> None:
    with pytest.raises(FatalError, match="write http://host:port/v1"):
        VLLM(address).models()


@pytest.mark.parametrize(
    "answer", ["<html>\n<body>Hello</body></html>", "[]", {"data": ["base"]}, {"data": None}, {"models": []}]
)
def test_something_else_than_an_openai_endpoint_is_fatal_in_one_line(server: FakeVLLM, answer: Any) -> None:
    server.answers["/v1/models"] = (200, answer)
    with pytest.raises(FatalError, match="not an OpenAI-compatible endpoint") as caught:
        VLLM(server.url).models()
    assert "\n" not in str(caught.value)


def test_a_server_is_healthy_when_it_says_so_and_not_while_it_is_starting_or_away(server: FakeVLLM) -> None:
    assert VLLM(server.url).health()
    server.answers["/health"] = (503, "")
    assert not VLLM(server.url).health()
    assert not VLLM(f"http://127.0.0.1:{free_port()}").health()


def test_waiting_ends_as_soon_as_the_server_is_healthy(server: FakeVLLM) -> None:
    server.answers["/health"] = (503, "")

    def get_well() -> bool:
        if len(server.asked) == 3:
            server.answers["/health"] = (200, "")
        return True

    VLLM(server.url).wait_until_healthy(20, get_well, interval_s=0.01)
    assert len(server.asked) == 4


def test_waiting_for_a_server_that_has_ended_is_fatal_at_once(server: FakeVLLM) -> None:
    server.answers["/health"] = (503, "")
    with pytest.raises(FatalError, match="ended before it was ready"):
        VLLM(server.url).wait_until_healthy(60, alive=lambda: False)


def test_waiting_too_long_is_transient(server: FakeVLLM) -> None:
    server.answers["/health"] = (503, "")
    with pytest.raises(TransientError, match=r"not ready after 0\.05 s"):
        VLLM(server.url).wait_until_healthy(0.05, interval_s=0.01)


def test_several_addresses_are_no_server() -> None:
    with pytest.raises(FatalError, match="several addresses, and this is done at one server"):
        VLLM("http://a:8000/v1,http://b:8000/v1")
