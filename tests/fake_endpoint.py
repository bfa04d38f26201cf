"""An OpenAI-compatible endpoint that does what a test tells it: a real HTTP server on a free loopback port.

It keeps every request and counts the sequences in flight (a request for n completions is n of them) from the moment a
request is read until its answer is written. It knows no model: what it says is scripted.
"""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

Request = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. `seconds` is how long it takes; `cut` sends half the body and resets the connection; `drips`
    sends byte after byte and never ends."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    seconds: float = 0.0
    cut: bool = False
    drips: bool = False


def says(
    *texts: str,
    finish_reason: str = "stop",
    model: str = "fake",
    seconds: float = 0.0,
    prompt_tokens: int = 10,
    completion_tokens: int = 5,
) -> Answer:
    """A completion with one choice a text."""
    return Answer(
        seconds=seconds,
        body=json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": model,
                "choices": [
                    {"index": i, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
                    for i, text in enumerate(texts)
                ],
                "usage": {
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                    "total_tokens": prompt_tokens + completion_tokens,
                },
            }
        ).encode(),
    )


def fails(status: int, message: str = "no", code: str | None = None, **headers: str) -> Answer:
    """An error in OpenAI's form; a header's underscores become hyphens."""
    return Answer(
        status,
        json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode(),
        {name.replace("_", "-"): value for name, value in headers.items()},
    )


class FakeEndpoint(ThreadingHTTPServer):
    """`answer` decides on each request, in a thread of its own; `script` is answered first, in order."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int = 0) -> None:
        self.answer: Callable[[Request], Answer] = lambda request: says(
            *[f"[JERRY] {last(request)} {request.get('seed', 0) + i}" for i in range(request.get("n", 1))]
        )
        self.script: list[Answer] = []
        self.models: Answer = Answer(body=json.dumps({"object": "list", "data": [{"id": "fake"}]}).encode())
        self.requests: list[Request] = []
        self.authorization: list[str | None] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @contextmanager
    def flying(self, sequences: int) -> Iterator[None]:
        with self._lock:
            self._in_flight += sequences
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= sequences

    def decide(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            scripted = self.script.pop(0) if self.script else None
        return scripted or self.answer(request)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: two cost 40 ms, the client's delayed acknowledgement

    @property
    def fake(self) -> FakeEndpoint:
        assert isinstance(self.server, FakeEndpoint)
        return self.server

    def do_GET(self) -> None:
        self._send(self.fake.models if self.path == "/v1/models" else fails(404, "Not Found"))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.authorization.append(self.headers["Authorization"])
        if self.path != "/v1/chat/completions":
            return self._send(fails(404, "Not Found"))
        with self.fake.flying(request.get("n", 1)):
            answer = self.fake.decide(request)
            time.sleep(answer.seconds)
        # Counted as landed just before it is sent: the client may send the next request before this thread goes on.
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body) if not answer.drips else 10**9))
        self.end_headers()
        if answer.drips:
            self._drip()
        elif answer.cut:
            self.wfile.write(answer.body[: len(answer.body) // 2])
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        else:
            self.wfile.write(answer.body)

    def _drip(self) -> None:
        self.close_connection = True
        try:
            while True:
                self.wfile.write(b"\n")
                self.wfile.flush()
                time.sleep(0.02)
        except OSError:
            pass

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            pass

    def log_message(self, format: str, *args: object) -> None:
        pass


def last(request: Request) -> str:
    """What the request's last message says."""
    return request["messages"][-1]["content"]


Server = TypeVar("Server", bound=ThreadingHTTPServer)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """The server, at work."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


@contextmanager
def serving(port: int = 0) -> Iterator[FakeEndpoint]:
    """A running endpoint."""
    with running(FakeEndpoint(port)) as endpoint:
        yield endpoint
