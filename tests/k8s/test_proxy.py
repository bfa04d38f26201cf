"""The proxy before vLLM, a real Caddy with the rules of k8s/proxy.yaml: inference passes, and nothing else does."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nothing_gpt.processes import free_port
from tests.fake_endpoint import running
from tests.k8s.manifests import containers, find

PASSED = {"/health", "/v1/models", "/v1/completions", "/v1/chat/completions"}
ENOUGH_S = 60


@dataclass
class Got:
    """A request that vLLM got."""

    method: str
    path: str
    key: str | None
    body: bytes


class Upstream(ThreadingHTTPServer):
    """Stands where vLLM would, and notes what comes. A body that asks for it is answered in two pieces, the second of
    which waits for `first_read`."""

    daemon_threads = True

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.first_read = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A proxy may hang up at any time."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        upstream = cast(Upstream, self.server)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upstream.got.append(Got(self.command, self.path, self.headers.get("Authorization"), body))
        self.send_response(200)
        if b'"stream"' in body:
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self._chunk(b"data: one\n\n")
            upstream.first_read.wait(ENOUGH_S)
            self._chunk(b"data: two\n\n")
            self._chunk(b"")
        else:
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

    do_GET = do_PUT = do_DELETE = do_PATCH = do_POST

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass
class Proxy:
    """A running proxy, and what is behind it."""

    port: int
    upstream: Upstream
    connections: list[http.client.HTTPConnection] = field(default_factory=list)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
        """Sends a request line as it is written."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ENOUGH_S)
        self.connections.append(connection)
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        return connection.getresponse()


@contextmanager
def caddy(folder: Path, upstream: int) -> Iterator[int]:
    """The container `proxy` as a process, before what listens on the port `upstream`; yields its own port."""
    (folder / "Caddyfile").write_text(find("ConfigMap", "proxy")["data"]["Caddyfile"])
    pod = find("Deployment", "vllm")["spec"]["template"]
    command = next(container["command"] for container in containers(pod) if container["name"] == "proxy")
    program, *arguments = [word.replace("/etc/caddy", str(folder)) for word in command]
    port = free_port()
    environment = {"HOME": str(folder), "PORT": str(port), "UPSTREAM": f"127.0.0.1:{upstream}"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([Path(sys.executable).parent / program, *arguments], env=environment, stderr=log)
    try:
        deadline = time.monotonic() + ENOUGH_S
        while process.poll() is None and time.monotonic() < deadline and not listening(port):
            time.sleep(0.05)
        assert listening(port), (folder / "log").read_text()
        yield port
    finally:
        process.kill()
        process.wait()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running(Upstream()) as upstream, caddy(tmp_path_factory.mktemp("caddy"), upstream.server_port) as port:
        proxy = Proxy(port, upstream)
        yield proxy
        for connection in proxy.connections:
            connection.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
    ],
)
def test_inference_passes_with_its_key_and_its_body(proxy: Proxy, method: str, path: str) -> None:
    body = json.dumps({"model": "seinfeld"}).encode()
    reply = proxy.ask(method, path, body, Authorization="Bearer secret")
    assert (reply.status, reply.read()) == (200, b"{}")
    assert proxy.upstream.got[-1] == Got(method, path, "Bearer secret", body)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "//v1/load_lora_adapter",
        "/v1//load_lora_adapter",
        "/V1/Load_Lora_Adapter",
        "/v1/%6coad_lora_adapter",
        "/v1/load%5flora_adapter",
        "/v1/chat/../load_lora_adapter",
        "/health/../v1/load_lora_adapter",
        "/health/%2e%2e/v1/load_lora_adapter",
        "/v1/models/../load_lora_adapter",
        "/v1/models%0a/v1/load_lora_adapter",
        "/v1/models%3f/../load_lora_adapter",
        "/v1/models/",
        "/x/v1/models",
        "/v1/chat/completions/render",
        "/reset_prefix_cache",
        "/collective_rpc",
        "/tokenize",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/",
        "http://vllm:8000/v1/load_lora_adapter",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_else_passes(proxy: Proxy, method: str, path: str) -> None:
    before = len(proxy.upstream.got)
    assert proxy.ask(method, path, b'{"lora_name": "x", "lora_path": "/tmp"}').status == 404
    assert len(proxy.upstream.got) == before


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "CONNECT", "TRACE"])
def test_no_other_method_passes(proxy: Proxy, method: str) -> None:
    before = len(proxy.upstream.got)
    assert proxy.ask(method, "/v1/models").status >= 400
    assert len(proxy.upstream.got) == before


PIECES = ["/", "//", "..", ".", "%2e%2e", "%2f", "%5c", "\\", ";", "?", "#", "%00", "%0a", "v1", "V1", "models", "chat",
          "health", "completions", "load_lora_adapter", "unload_lora_adapter", "%6coad_lora_adapter"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=20).map(lambda text: quote(text)))
def test_whatever_is_asked_for_what_passes_is_one_of_the_routes(proxy: Proxy, tail: str) -> None:
    before = len(proxy.upstream.got)
    proxy.ask("POST", f"/{tail}", b"{}")
    assert {got.path for got in proxy.upstream.got[before:]} <= PASSED


def test_a_query_does_not_pass(proxy: Proxy) -> None:
    assert proxy.ask("GET", "/v1/models?lora_path=/tmp").status == 200
    assert proxy.upstream.got[-1].path == "/v1/models"


def test_a_header_cannot_name_another_route(proxy: Proxy) -> None:
    headers = {"X-Original-URL": "/v1/load_lora_adapter", "X-Rewrite-URL": "/v1/load_lora_adapter"}
    assert proxy.ask("POST", "/v1/completions", b"{}", **headers).status == 200
    assert proxy.upstream.got[-1].path == "/v1/completions"


def test_tokens_come_as_they_are_made(proxy: Proxy) -> None:
    proxy.upstream.first_read.clear()
    reply = proxy.ask("POST", "/v1/chat/completions", b'{"stream": true}')
    assert reply.readline() == b"data: one\n"
    proxy.upstream.first_read.set()
    assert reply.read() == b"\ndata: two\n\n"


def test_a_body_of_no_conversation_s_size_is_refused(proxy: Proxy) -> None:
    assert proxy.ask("POST", "/v1/completions", b" " * 4_000_001).status >= 400


def test_while_vllm_is_away_the_proxy_is_not_healthy(tmp_path: Path) -> None:
    with caddy(tmp_path, upstream=free_port()) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ENOUGH_S)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 502
        connection.close()
