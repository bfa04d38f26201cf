"""An endpoint with OpenAI's files and batches API: what becomes of each row is scripted, as in `fake_endpoint.py`.

A batch takes the next of its statuses each time it is asked for, as if time passed. Its files hold their lines in the
reverse of the order in which they were asked. Single requests are answered as there, too.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fake_endpoint import Answer, FakeEndpoint, Handler, Request, fails, last, running

COURSE = ("validating", "in_progress", "finalizing", "completed")
PAGE = 2
"""Most batches that a list shows at once: fewer than the real one's 100, so that every test turns pages."""


class FakeBatches(FakeEndpoint):
    """`fate` decides on a row's body and its batch's number: a 200 is a line of the batch's output file, another status
    one of its error file, None no line where the batch is completed and an unexecuted row's line where it is not.

    `courses` are the statuses of the next batches; then COURSE. `errors` say why one failed. `spoil` may change the
    lines of an output file. `before` is called with each step ("POST /batches") before it is done, and `after` when it
    is done but not yet answered: an Answer that they give is sent instead. `submitted` counts the rows of the batches
    that were created, and `paid` those that were answered, by their last message.
    """

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)
        self.RequestHandlerClass = _BatchHandler
        self.fate: Callable[[Request, int], Answer | None] = lambda request, batch: self.answer(request)
        self.courses: list[tuple[str, ...]] = []
        self.errors: list[dict[str, Any]] = []
        self.spoil: Callable[[list[bytes]], list[bytes]] = lambda lines: lines
        self.before: Callable[[str], Answer | None] = lambda step: None
        self.after: Callable[[str], Answer | None] = lambda step: None
        self.steps: list[str] = []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.submitted: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self._todo: dict[str, list[str]] = {}
        self._guard = threading.RLock()

    def respond(self, method: str, path: str, query: dict[str, list[str]], body: bytes, content_type: str) -> Answer:
        parts = path.removeprefix("/v1/").split("/")
        step = f"{method} /{parts[0]}" + ("/ID" if len(parts) > 1 else "") + "".join(f"/{p}" for p in parts[2:])
        with self._guard:
            self.steps.append(step)
            refused = self.before(step)
            if refused:
                return refused
            answer = self._do(step, parts, query, body, content_type)
            return self.after(step) or answer

    def _do(self, step: str, parts: list[str], query: dict[str, list[str]], body: bytes, content_type: str) -> Answer:
        match step:
            case "POST /files":
                return self._upload(body, content_type)
            case "POST /batches":
                return self._create(json.loads(body))
            case "GET /batches":
                return self._list(int(query.get("limit", ["20"])[0]), query.get("after", [""])[0])
            case "GET /batches/ID" if parts[1] in self.batches:
                return _json(self._advanced(parts[1]))
            case "GET /files/ID/content" if parts[1] in self.files:
                return Answer(body=self.files[parts[1]], content_type="application/octet-stream")
        return fails(404, f"No such object: {parts[-1]}")

    def _upload(self, body: bytes, content_type: str) -> Answer:
        message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
        fields = {
            part["Content-Disposition"].params["name"]: part.get_payload(decode=True)
            for part in message.walk()
            if part["Content-Disposition"]
        }
        if fields["purpose"] != b"batch":
            return fails(400, "Invalid purpose")
        file = self._file(fields["file"])
        return _json({"id": file, "object": "file", "purpose": "batch", "filename": "batch.jsonl", "created_at": 0})

    def _create(self, asked: dict[str, Any]) -> Answer:
        if asked["input_file_id"] not in self.files:
            return fails(400, "No such File object")
        if (asked["endpoint"], asked["completion_window"]) != ("/v1/chat/completions", "24h"):
            return fails(400, "Invalid endpoint or completion window")
        course = list(self.courses.pop(0) if self.courses else COURSE)
        batch = {
            "id": f"batch_{len(self.batches)}",
            "object": "batch",
            "created_at": int(time.time()),
            "status": course.pop(0),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
            **asked,
        }
        custom_ids = [row["custom_id"] for row in self._rows(batch)]
        assert len(set(custom_ids)) == len(custom_ids)
        assert all(row["method"] == "POST" and row["url"] == asked["endpoint"] for row in self._rows(batch))
        self.submitted.update(last(row["body"]) for row in self._rows(batch))
        self.batches[batch["id"]] = batch
        self._todo[batch["id"]] = course
        return _json(batch)

    def _list(self, limit: int, after: str) -> Answer:
        newest_first = list(reversed(self.batches.values()))
        ids = [batch["id"] for batch in newest_first]
        start = ids.index(after) + 1 if after else 0
        page = newest_first[start : start + min(limit, PAGE)]
        return _json(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
                "has_more": start + len(page) < len(ids),
            }
        )

    def _advanced(self, batch_id: str) -> dict[str, Any]:
        batch, course = self.batches[batch_id], self._todo[batch_id]
        if course:
            batch["status"] = course.pop(0)
            if not course:
                self._end(batch)
        return batch

    def _end(self, batch: dict[str, Any]) -> None:
        if batch["status"] == "failed":
            batch["errors"] = {"object": "list", "data": self.errors}
            return
        output: list[bytes] = []
        errors: list[bytes] = []
        for number, row in enumerate(reversed(self._rows(batch))):
            line: dict[str, Any] = {"id": f"batch_req_{number}", "custom_id": row["custom_id"]}
            answer = self.fate(row["body"], list(self.batches).index(batch["id"]))
            if answer is None and batch["status"] == "completed":
                continue
            if answer is None:
                code = f"batch_{batch['status']}"
                line |= {"response": None, "error": {"code": code, "message": "This request was not executed."}}
            else:
                body = json.loads(answer.body)
                line |= {"response": {"status_code": answer.status, "request_id": "1", "body": body}, "error": None}
            good = answer is not None and answer.status == 200
            self.paid[last(row["body"])] += good
            (output if good else errors).append(json.dumps(line).encode() + b"\n")
        batch["request_counts"] = {
            "total": len(self._rows(batch)),
            "completed": len(output),
            "failed": len(errors),
        }
        batch["output_file_id"] = self._file(b"".join(self.spoil(output))) if output else None
        batch["error_file_id"] = self._file(b"".join(errors)) if errors else None

    def _rows(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]

    def _file(self, data: Any) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = data
        return name

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed while it waited is part of a test."""


class _BatchHandler(Handler):
    def do_GET(self) -> None:
        if self.path == "/v1/models":
            return super().do_GET()
        self._respond(b"")

    def do_POST(self) -> None:
        if self.path == "/v1/chat/completions":
            return super().do_POST()
        self._respond(self._body())

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _respond(self, body: bytes) -> None:
        fake = self.fake
        assert isinstance(fake, FakeBatches)
        fake.authorization.append(self.headers["Authorization"])
        url = urlsplit(self.path)
        self._send(fake.respond(self.command, url.path, parse_qs(url.query), body, self.headers["Content-Type"] or ""))


def _json(value: Any) -> Answer:
    return Answer(body=json.dumps(value).encode())


@contextmanager
def serving_batches(port: int = 0) -> Iterator[FakeBatches]:
    """A running endpoint."""
    with running(FakeBatches(port)) as endpoint:
        yield endpoint
