"""An API server with one namespace's Jobs, pods and events, as the test writes them; it controls nothing.

A real HTTP server for what the client asks: list, watch, create, read, delete, logs. What it answers depends on the
objects and on the request; `faults` says what happens to a request first, by what it asks for.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import yaml

NOW = "2026-11-21T12:00:00Z"


class FakeApi:
    """The objects by kind (jobs, pods, events) and name, and each pod's log."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, dict[str, Any]]] = {"jobs": {}, "pods": {}, "events": {}}
        self.logs: dict[str, list[str]] = {}
        self.log_ended: set[str] = set()
        self.faults: dict[str, list[Any]] = {}
        """By what is asked for (list-jobs, watch-pods, create, read, delete, log): HTTP statuses, `cut` (the answer
        breaks off; a log in its next line), `gone` (a watch that has expired) or `hang`; each happens once."""
        self.requests: list[str] = []
        self.queries: list[dict[str, str]] = []
        self.credentials: list[str | None] = []
        """Of each request that reads."""
        self.version = 1
        self.changed = threading.Condition()
        self.closing = False

    def put(self, kind: str, thing: dict[str, Any]) -> None:
        """Writes an object: a new one, or one anew."""
        with self.changed:
            self.version += 1
            metadata = thing["metadata"]
            before = self.objects[kind].get(metadata["name"], {"metadata": {}})["metadata"]
            metadata.setdefault("uid", before.get("uid", f"{metadata['name']}-{self.version}"))
            metadata.setdefault("creationTimestamp", NOW)
            metadata["resourceVersion"] = str(self.version)
            self.objects[kind][metadata["name"]] = thing
            self.changed.notify_all()

    def remove(self, kind: str, name: str) -> None:
        with self.changed:
            self.version += 1
            del self.objects[kind][name]
            self.changed.notify_all()

    def write(self, pod: str, *lines: str, end: bool = False) -> None:
        """Adds lines, each behind its time, to a pod's log."""
        with self.changed:
            self.logs.setdefault(pod, []).extend(lines)
            if end:
                self.log_ended.add(pod)
            self.changed.notify_all()

    def fault(self, request: str, query: dict[str, str]) -> Any:
        with self.changed:
            self.requests.append(request)
            self.queries.append(query)
            waiting = self.faults.get(request)
            return waiting.pop(0) if waiting else None

    def found(self, kind: str, query: dict[str, str]) -> list[dict[str, Any]]:
        field, _, value = query.get("fieldSelector", "").partition("=")
        things = list(self.objects[kind].values())
        if field == "metadata.name":
            return [thing for thing in things if thing["metadata"]["name"] == value]
        if field == "involvedObject.name":
            return [thing for thing in things if thing["involvedObject"]["name"] == value]
        return things


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    @property
    def fake(self) -> FakeApi:
        return cast(Any, self.server).fake

    def do_GET(self) -> None:
        path, query = self._asked()
        self.fake.credentials.append(self.headers["Authorization"])
        kind, _, name = path.partition("/")
        request = "read" if name else f"{'watch' if 'watch' in query else 'list'}-{kind}"
        if name.endswith("/log"):
            request = "log"
        fault = self.fake.fault(request, query)
        if self._refused(fault):
            return
        if request == "log":
            self._log(name.removesuffix("/log"), query, fault)
        elif request == "read":
            thing = self.fake.objects[kind].get(name)
            self._reply(200, thing) if thing else self._status(404, f'{kind} "{name}" not found')
        elif request.startswith("watch"):
            self._watch(kind, query, fault)
        else:
            with self.fake.changed:
                body = {"metadata": {"resourceVersion": str(self.fake.version)}, "items": self.fake.found(kind, query)}
            self._reply(200, body)

    def do_POST(self) -> None:
        kind, query = self._asked()
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused(self.fake.fault("create", query)):
            return
        if job["metadata"]["name"] in self.fake.objects[kind]:
            return self._status(409, f'jobs.batch "{job["metadata"]["name"]}" already exists')
        self.fake.put(kind, job)
        self._reply(201, job)

    def do_DELETE(self) -> None:
        path, query = self._asked()
        options = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert options["propagationPolicy"] == "Foreground"
        kind, _, name = path.partition("/")
        if self._refused(self.fake.fault("delete", query)):
            return
        job = self.fake.objects[kind].get(name)
        if job is None:
            return self._status(404, f'jobs.batch "{name}" not found')
        if options.get("preconditions", {}).get("uid", job["metadata"]["uid"]) != job["metadata"]["uid"]:
            return self._status(409, "Precondition failed: UID in precondition")
        self.fake.remove(kind, name)
        self._reply(200, {})

    def _asked(self) -> tuple[str, dict[str, str]]:
        """What comes after the namespace in the path, and the query."""
        url = urlsplit(self.path)
        return url.path.split("/namespaces/")[1].partition("/")[2], dict(parse_qsl(url.query))

    def _refused(self, fault: Any) -> bool:
        if fault == "hang":
            with self.fake.changed:
                self.fake.changed.wait_for(lambda: self.fake.closing, timeout=60)
            self.close_connection = True
            return True
        if isinstance(fault, int):
            self._status(fault, "a fault that the test asked for")
            return True
        return False

    def _watch(self, kind: str, query: dict[str, str], fault: Any) -> None:
        self._begin()
        if fault == "gone":
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            return self._chunk({"type": "ERROR", "object": gone}, last=True)
        since = int(query["resourceVersion"])
        known = {thing["metadata"]["name"]: thing for thing in self.fake.found(kind, query)}
        end = time.monotonic() + int(query["timeoutSeconds"])
        while not self.fake.closing:
            with self.fake.changed:
                news = [
                    {"type": "MODIFIED", "object": thing}
                    for thing in self.fake.found(kind, query)
                    if int(thing["metadata"]["resourceVersion"]) > since
                ]
                present = {thing["metadata"]["name"] for thing in self.fake.found(kind, query)}
                news += [{"type": "DELETED", "object": known.pop(name)} for name in [*known] if name not in present]
                since = self.fake.version
                known |= {
                    event["object"]["metadata"]["name"]: event["object"] for event in news if event["type"] != "DELETED"
                }
                if not news and time.monotonic() >= end:
                    break
                if not news:
                    self.fake.changed.wait(timeout=0.2)
            for event in news:
                self._chunk(event)
            if fault == "cut":
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")

    def _log(self, pod: str, query: dict[str, str], fault: Any) -> None:
        self._begin()
        since = query.get("sinceTime", "").removesuffix("Z")
        shown = 0
        while not self.fake.closing:
            with self.fake.changed:
                lines = self.fake.logs.get(pod, [])[shown:]
                ended = pod in self.fake.log_ended
                if not lines and not ended:
                    self.fake.changed.wait(timeout=0.2)
            for line in lines:
                shown += 1
                if line[: len(since)] < since:
                    continue
                if fault == "cut":
                    text = line[: len(line) // 2].encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
                    self.close_connection = True
                    return
                self._chunk(line)
            if ended and not lines:
                break
        self.wfile.write(b"0\r\n\r\n")

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, thing: Any, last: bool = False) -> None:
        data = (thing if isinstance(thing, str) else json.dumps(thing)).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) + (b"0\r\n\r\n" if last else b""))
        self.wfile.flush()

    def _status(self, code: int, message: str) -> None:
        self._reply(code, {"kind": "Status", "code": code, "message": message})

    def _reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # a client that hung up
        pass


@contextmanager
def serving(kubeconfig: Path) -> Iterator[FakeApi]:
    """A running server, and a kubeconfig that leads to it."""
    with Server(("127.0.0.1", 0), Handler) as server:
        fake = cast(Any, server).fake = FakeApi()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "me", "user": {"token": "secret"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
            "current-context": "fake",
        }
        kubeconfig.write_text(yaml.safe_dump(config))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield fake
        finally:
            with fake.changed:
                fake.closing = True
                fake.changed.notify_all()
            server.shutdown()
            thread.join()
