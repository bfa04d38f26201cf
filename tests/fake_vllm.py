"""A vLLM that serves adapters without a model: the admin routes as vLLM 0.32 has them, and answers that follow from the
weights of the adapter that was loaded. It is a real HTTP server on a free loopback port.

A *greedy* answer is tokens made of the weights. A *sampled* one is a line with a number in it: the higher the
adapter's `lora_B`, the higher the number, so that a judge who reads the number prefers the adapter with the larger
weights. A test that wants the server to misbehave sets `refuses`, `deaf`, `root_of` or `dead`, at once or in `before`.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.fake_endpoint import running

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
RANK, IN, OUT = 2, 4, 3
Refusal = tuple[int, str]


def save_adapter(folder: Path, level: float, out: int = OUT) -> Path:
    """A LoRA adapter of one layer whose `lora_B` is `level` everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"{MODULE}.lora_A.weight": np.ones((RANK, IN), np.float32),
        f"{MODULE}.lora_B.weight": np.full((out, RANK), level, np.float32),
    }
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def save_base(folder: Path) -> Path:
    """The base model that these adapters fit, as far as its shapes go."""
    folder.mkdir(parents=True, exist_ok=True)
    name = MODULE.removeprefix("base_model.model.") + ".weight"
    save_file({name: np.zeros((OUT, IN), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


class FakeVLLM(ThreadingHTTPServer):
    """`loads` is every load that was asked for, as (name, path, in place); `completions` every completion request."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        self.loads: list[tuple[str, str, bool]] = []
        self.completions: list[dict[str, Any]] = []
        self.before: Callable[[str, Mapping[str, Any]], None] = lambda route, body: None
        self.refuses: Callable[[str, str], Refusal | None] = lambda name, path: None
        self.deaf = False
        """Accepts a load in place, and answers as before."""
        self.root_of: dict[str, str] = {}
        """A path to show for a name, other than the one it was loaded from."""
        self.dead = False
        self.paths: dict[str, str] = {}
        self._weights: dict[str, bytes] = {}
        self._levels: dict[str, float] = {}
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def serve(self, name: str, adapter: Path) -> None:
        """Serves an adapter from the start, as `--lora-modules` does."""
        self._put(name, str(adapter))

    def served(self) -> dict[str, str]:
        """Each adapter's name and the path it was loaded from."""
        return dict(self.paths)

    def answers_like(self, name: str, adapter: Path) -> bool:
        """Whether what answers under the name is the adapter in this folder."""
        return self._weights.get(name) == (adapter / "adapter_model.safetensors").read_bytes()

    def models(self) -> dict[str, Any]:
        roots = {"base": "/models/base", **self.paths, **self.root_of}
        return {"object": "list", "data": [{"id": name, "object": "model", "root": roots[name]} for name in roots]}

    def load(self, body: Mapping[str, Any]) -> Refusal:
        name, path, in_place = body["lora_name"], body["lora_path"], body.get("load_inplace", False)
        with self._lock:
            self.loads.append((name, path, in_place))
            if refusal := self.refuses(name, path):
                return refusal
            if not (Path(path) / "adapter_config.json").is_file():
                return 404, f"Loading lora {name} failed: No adapter found for {path}"
            if name in self.paths and not in_place:
                return 400, f"The lora adapter '{name}' has already been loaded. If ..."
            if not (self.deaf and name in self.paths):
                self._put(name, path)
            self.paths[name] = path
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: Mapping[str, Any]) -> Refusal:
        if self.paths.pop(body["lora_name"], None) is None:
            return 404, f"The lora adapter '{body['lora_name']}' cannot be found."
        return 200, "Success"

    def complete(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """A completion, or None where the model is not served."""
        self.completions.append(body)
        if body["model"] not in self.paths:
            return None
        count = body.get("n", 1)
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [self._choice(body, index) for index in range(count)],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5 * count, "total_tokens": 10 + 5 * count},
        }

    def _put(self, name: str, path: str) -> None:
        file = Path(path) / "adapter_model.safetensors"
        self.paths[name], self._weights[name] = path, file.read_bytes()
        self._levels[name] = float(load_file(file)[f"{MODULE}.lora_B.weight"].mean())

    def _choice(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        said = body["messages"][-1]["content"]
        if body.get("temperature") == 0:
            tokens = [_number(self._weights[body["model"]], said, i) for i in range(body["max_tokens"])]
            text = " ".join(f"w{token % 997}" for token in tokens)
        else:
            chance = _number(b"", said, body.get("seed", 0) + index) % 500
            tokens, text = [], f"[JERRY] Take {round(1000 * self._levels[body['model']]) + chance:05}."
        content = [
            {"token": f"w{token % 997}", "logprob": -(token % 1009) / 100, "bytes": None, "top_logprobs": []}
            for token in tokens
        ]
        return {
            "index": index,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
            "logprobs": {"content": content} if body.get("logprobs") else None,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeVLLM  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, {})
        elif self.path == "/v1/models":
            self._send(200, self.server.models())
        else:
            self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.before(self.path, body)
        if self.path == "/v1/load_lora_adapter":
            self._say(*self.server.load(body))
        elif self.path == "/v1/unload_lora_adapter":
            self._say(*self.server.unload(body))
        elif self.path == "/v1/chat/completions" and (answer := self.server.complete(body)):
            self._send(200, answer)
        else:
            self._say(404, f"The model `{body.get('model')}` does not exist.")

    def _say(self, status: int, message: str) -> None:
        self._send(status, message if status == 200 else {"error": {"message": message, "code": status}})

    def _send(self, status: int, value: Any) -> None:
        if self.server.dead:
            self.close_connection = True
            return
        payload = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client has gone

    def log_message(self, format: str, *args: object) -> None:
        pass


def _number(*of: object) -> int:
    return int(hashlib.sha256(repr(of).encode()).hexdigest()[:8], 16)


@contextmanager
def serving_adapters() -> Iterator[FakeVLLM]:
    """A running server that serves the base model alone."""
    with running(FakeVLLM()) as server:
        yield server
