"""A Cloud Storage server with one bucket, and with the faults that a test asks for.

It is a real HTTP server for the part of the JSON API that google-cloud-storage uses for objects: uploads in one request
and resumable ones, downloads with ranges, copies, listings in pages, preconditions, CRC32C. Objects are files in a
folder. It knows no credentials, versions or access lists.
"""

import base64
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c

BUCKET = "bucket"
PAGE = 1000
"""Most objects in a page of a listing, as in Cloud Storage."""
PERSISTED = 256 << 10
"""A resumable upload that breaks off keeps a multiple of these bytes, as in Cloud Storage."""
BLOCK = 1 << 20

Fault = None | str | int | tuple[int, str, str] | Callable[[], Any]
"""What happens to a request: an HTTP status; a status, reason and message; `cut` (the connection breaks off half-way
through the body), `lost` (what was asked for is done and the connection is cut) or `damaged` (a bit of the body flips);
something that is done first; or None, nothing."""


class Refused(Exception):
    """A request answered with an error."""

    def __init__(self, status: int, message: str, reason: str = "error"):
        super().__init__(message)
        self.body = {"error": {"code": status, "message": message, "errors": [{"message": message, "reason": reason}]}}
        self.status = status


class Cut(Exception):
    """The connection breaks off."""


@dataclass
class Stored:
    """One object, or one that is being uploaded."""

    name: str
    file: Path
    metadata: dict[str, str]
    condition: int | None = None
    """Generation that its upload is to replace; 0: none."""
    checksum: Any = field(default_factory=google_crc32c.Checksum)
    size: int = 0
    generation: int = 0

    def add(self, data: bytes) -> None:
        if data:  # most of 20,000 objects in a listing are empty, and need no file
            with self.file.open("ab") as file:
                file.write(data)
        self.checksum.update(data)
        self.size += len(data)

    @property
    def content(self) -> bytes:
        return self.file.read_bytes() if self.size else b""

    @property
    def crc32c(self) -> str:
        return base64.b64encode(self.checksum.digest()).decode()

    def resource(self) -> dict[str, Any]:
        return {
            "kind": "storage#object",
            "name": self.name,
            "bucket": BUCKET,
            "generation": str(self.generation),
            "metageneration": "1",
            "size": str(self.size),
            "crc32c": self.crc32c,
            "metadata": self.metadata,
        }


class FakeGCS:
    """The bucket: its objects by name, the requests that came, and the faults that are still to happen."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Stored] = {}
        self.faults: dict[str, Sequence[Fault]] = {}
        self.requests: list[str] = []
        """Operations in the order in which they came: insert, start, chunk, copy, get, download, list, delete."""
        self.tokens: set[str] = set()
        """The credentials that came with the requests."""
        self.exists = True
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)
        self.url = ""

    def content(self, name: str) -> bytes | None:
        """What the object holds, or None where there is none."""
        stored = self.objects.get(name)
        return stored and stored.content

    def put(self, name: str, data: bytes) -> None:
        """An object that somebody else writes."""
        stored = self.new(name, {}, None)
        stored.add(data)
        self.finish(stored)

    def new(self, name: str, metadata: dict[str, str], condition: int | None) -> Stored:
        return Stored(name, self.folder / str(next(self._numbers)), metadata, condition)

    def finish(self, stored: Stored) -> None:
        """Makes an upload the object, if what it is to replace is still there."""
        with self.lock:
            self.check(stored.name, stored.condition)
            stored.generation = next(self._numbers)
            self.objects[stored.name] = stored

    def check(self, name: str, condition: int | None) -> None:
        present = self.objects[name].generation if name in self.objects else 0
        if condition is not None and condition != present:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.", "conditionNotMet")

    def find(self, name: str, generation: str | None = None) -> Stored:
        stored = self.objects.get(name)
        if stored is None or generation not in (None, str(stored.generation)):
            raise Refused(404, f"No such object: {BUCKET}/{name}", "notFound")
        return stored

    def page(self, prefix: str, after: str, limit: int) -> dict[str, Any]:
        names = sorted(name for name in list(self.objects) if name.startswith(prefix) and name > after)
        page: dict[str, Any] = {"items": [self.objects[name].resource() for name in names[:limit]]}
        return page if len(names) <= limit else page | {"nextPageToken": names[limit - 1]}


class Handler(BaseHTTPRequestHandler):
    """One connection's requests."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one packet, which nobody waits to acknowledge

    def setup(self) -> None:
        super().setup()
        self.fake = cast(Any, self.server).fake

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._insert)

    def do_PUT(self) -> None:
        self._answer(self._chunk)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, act: Callable[[], None]) -> None:
        url = urlsplit(self.path)
        self.query = dict(parse_qsl(url.query, keep_blank_values=True))
        self.left = int(self.headers.get("Content-Length") or 0)
        self.fault: Fault = None
        try:
            match = re.fullmatch(r"(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/o/?(.*))?", url.path)
            if match is None:
                raise Refused(501, f"the fake does not know {self.path}")
            if match[1] != BUCKET or not self.fake.exists:
                raise Refused(404, "The specified bucket does not exist.", "notFound")
            if match[2] is None:
                self._reply(200, {"kind": "storage#bucket", "name": BUCKET})
                return
            self.name = unquote(match[2])
            act()
        except Refused as refused:
            self._body()
            self._reply(refused.status, refused.body)
        except (Cut, ConnectionError):
            self.close_connection = True

    def _begins(self, operation: str) -> None:
        """Notes the operation and meets the fault that waits for it."""
        with self.fake.lock:
            self.fake.requests.append(operation)
            self.fake.tokens.add(self.headers.get("Authorization", ""))
            self.fault, *self.fake.faults[operation] = self.fake.faults.get(operation) or [None]
        if callable(self.fault):
            self.fault()
        elif isinstance(self.fault, int):
            raise Refused(self.fault, "a fault that the test asked for")
        elif isinstance(self.fault, tuple):
            raise Refused(self.fault[0], self.fault[2], self.fault[1])

    def _body(self) -> bytes:
        """What came of the request's body."""
        data = self.rfile.read(self.left // 2 if self.fault == "cut" else self.left)
        self.left = 0
        return data

    def _as_arrived(self, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if self.fault == "damaged" and data else data

    def _reply(self, status: int, body: Any = None, **headers: str) -> None:
        if self.fault == "lost" and status < 400:
            raise Cut
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _condition(self) -> int | None:
        given = self.query.get("ifGenerationMatch")
        return None if given is None else int(given)

    def _copy(self, target: str) -> None:
        self._begins("copy")
        stored = self.fake.new(target, {}, self._condition())
        stored.add(self.fake.find(self.name).content)
        self.fake.finish(stored)
        sizes = dict.fromkeys(("totalBytesRewritten", "objectSize"), str(stored.size))
        self._reply(200, {"done": True, "resource": stored.resource(), **sizes})

    def _insert(self) -> None:
        if copied := re.fullmatch(rf"(.+)/rewriteTo/b/{BUCKET}/o/(.+)", self.name):
            self.name = copied[1]
            return self._copy(copied[2])
        resumable = self.query["uploadType"] == "resumable"
        self._begins("start" if resumable else "insert")
        body = self._body()
        if self.fault == "cut":
            raise Cut
        if resumable:
            described, data = json.loads(body), b""
        else:
            boundary = re.search(r"boundary=\"?([^\";]+)", self.headers["Content-Type"] or "")
            assert boundary is not None
            _, head, content = body.split(b"--" + boundary[1].encode() + b"\r\n", 2)
            described = json.loads(head.split(b"\r\n\r\n", 1)[1])
            data = content.split(b"\r\n\r\n", 1)[1].rpartition(b"\r\n--" + boundary[1].encode())[0]
        stored = self.fake.new(described["name"], described.get("metadata", {}), self._condition())
        self.fake.check(stored.name, stored.condition)
        if resumable:
            self.fake.uploads[stored.file.name] = stored
            self._reply(200, Location=f"{self.fake.url}{self.path}&upload_id={stored.file.name}")
            return
        stored.add(self._as_arrived(data))
        _agree(stored, described.get("crc32c"))
        self.fake.finish(stored)
        self._reply(200, stored.resource())

    def _chunk(self) -> None:
        self._begins("chunk")
        stored = self.fake.uploads[self.query["upload_id"]]
        given = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers["Content-Range"])
        assert given is not None
        at, total = int(given[1] or stored.size), given[2]
        if at > stored.size:
            raise Refused(400, f"bytes {stored.size} to {at} are missing")
        data = self._body()[stored.size - at :]  # what is there already is ignored
        if self.fault == "cut":
            stored.add(data[: len(data) // PERSISTED * PERSISTED])
            raise Cut
        stored.add(self._as_arrived(data))
        if str(stored.size) != total:
            received = {"Range": f"bytes=0-{stored.size - 1}"} if stored.size else {}
            self._reply(308, **received)
            return
        hashes = dict(part.strip().split("=", 1) for part in (self.headers["X-Goog-Hash"] or "").split(",") if part)
        _agree(stored, hashes.get("crc32c"))
        self.fake.finish(stored)
        self._reply(200, stored.resource())

    def _get(self) -> None:
        if not self.name:
            self._begins("list")
            limit = min(PAGE, int(self.query.get("maxResults") or PAGE))
            self._reply(200, self.fake.page(self.query.get("prefix", ""), self.query.get("pageToken", ""), limit))
        elif self.query.get("alt") == "media":
            self._download()
        else:
            self._begins("get")
            self._reply(200, self.fake.find(self.name, self.query.get("generation")).resource())

    def _download(self) -> None:
        self._begins("download")
        stored = self.fake.find(self.name, self.query.get("generation"))
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        end = min(stored.size, int(asked[2]) + 1) if asked and asked[2] else stored.size
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("X-Goog-Generation", str(stored.generation))
        self.send_header("X-Goog-Stored-Content-Length", str(stored.size))
        self.send_header("X-Goog-Hash", f"crc32c={stored.crc32c}")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{stored.size}")
        self.end_headers()
        with (stored.file if stored.size else Path(os.devnull)).open("rb") as file:
            file.seek(start)
            left = (end - start) // 2 if self.fault == "cut" else end - start
            while left and (block := file.read(min(BLOCK, left))):
                left -= len(block)
                self.wfile.write(block if left else self._as_arrived(block))
        if self.fault == "cut":
            raise Cut

    def _delete(self) -> None:
        self._begins("delete")
        with self.fake.lock:
            self.fake.find(self.name, self.query.get("generation"))
            self.fake.check(self.name, self._condition())
            del self.fake.objects[self.name]
        self._reply(204)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may go at any time
            super().handle_error(request, client_address)

    def __init__(self, fake: FakeGCS, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.fake = fake
        fake.url = f"http://127.0.0.1:{self.server_address[1]}"


def _agree(stored: Stored, crc32c: str | None) -> None:
    if crc32c not in (None, stored.crc32c):
        raise Refused(400, f'Provided CRC32C "{crc32c}" doesn\'t match calculated CRC32C "{stored.crc32c}".', "invalid")


@contextmanager
def serving(folder: Path) -> Iterator[FakeGCS]:
    """A fake in threads of this process."""
    folder.mkdir(parents=True, exist_ok=True)
    fake = FakeGCS(folder)
    server = Server(fake)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":  # python -m tests.fake_gcs FOLDER: a process of its own; prints its address
    fake = FakeGCS(Path(sys.argv[1]))
    server = Server(fake)
    print(fake.url, flush=True)
    server.serve_forever()
