"""The offline judge: an OpenAI-compatible HTTP endpoint that scores completions by the fixed rules of `rules.py`.

It stands in for an LLM judge where there is none, and says so in every reason it gives. It understands the question
that `judging.py` sends and nothing else; it never thinks, never tires, and costs nothing.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from nothing_gpt.embedded.rules import rank

MODEL = "offline-rules-1"
"""The number is the version of the rules: other rules are another judge, whose verdicts are asked for anew."""


class OfflineJudge:
    """Serves on a free port of 127.0.0.1 while the `with` block runs."""

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True, name="offline-judge").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "nothing-gpt"}]})
        else:
            self._refuse(404, "not found")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            request = json.loads(body)
            model, question = request["model"], json.loads(request["messages"][1]["content"])
            scene = question["conversation"][-1]["content"]
            best, worst, tie, reason = rank(scene, [completion["text"] for completion in question["completions"]])
        except (ValueError, KeyError, IndexError, TypeError):
            self._refuse(400, "not a question of nothing-gpt's judge")
            return
        if model != MODEL:
            self._refuse(404, f"the model {model!r} does not exist")
            return
        verdict = json.dumps(
            {"reason": f"(offline rules, in place of an LLM judge) {reason}", "best": best, "worst": worst, "tie": tie}
        )
        self._answer(
            200,
            {
                "id": "offline",
                "object": "chat.completion",
                "created": 0,
                "model": MODEL,
                "choices": [
                    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": verdict}}
                ],
                "usage": {
                    "prompt_tokens": len(body) // 4,
                    "completion_tokens": len(verdict) // 4,
                    "total_tokens": (len(body) + len(verdict)) // 4,
                },
            },
        )

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line a request would drown the run's own output."""
