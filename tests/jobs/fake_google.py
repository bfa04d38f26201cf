"""Artifact Registry and Cloud Build, as far as images need them, in the place of the network; what is built is in the
registry afterwards.

Nothing here was recorded. Cloud Build's answers go through the published messages of its API, which refuse a field that
there is not, and come as its client asks for them (enums as numbers, what is empty left out). The registry's are after
the OCI distribution specification, with the words that Artifact Registry is known to use.
"""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from google.cloud.devtools.cloudbuild_v1 import Build, ListBuildsResponse
from google.longrunning.operations_pb2 import Operation
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from requests.adapters import HTTPAdapter

REGISTRY = "us-central1-docker.pkg.dev/proj/images"


class FakeGoogle:
    """`images` are the registry's digests by REPOSITORY:TAG, `submitted` the builds as they were asked for. Each build
    is looked at once while it works, and then ends as `ending` says. `answer` may take over an answer by its URL."""

    def __init__(self) -> None:
        self.images: dict[str, str] = {}
        self.submitted: list[dict[str, Any]] = []
        self.builds: list[dict[str, Any]] = []
        self.ending: dict[str, Any] = {"status": "SUCCESS"}
        self.answer: Callable[[str], requests.Response | None] = lambda url: None

    def send(self, request: requests.PreparedRequest) -> requests.Response:
        url = urlsplit(str(request.url))
        host, path = url.netloc, url.path
        if (taken := self.answer(f"{host}{path}")) is not None:
            return taken
        if host.endswith("-docker.pkg.dev"):
            repository, tag = path.removeprefix("/v2/").split("/manifests/")
            digest = self.images.get(f"{host}/{repository}:{tag}")
            if digest is None:
                return refusal(404, "MANIFEST_UNKNOWN", f'Failed to fetch "{tag}"')
            return reply(200, {"schemaVersion": 2}, {"Docker-Content-Digest": digest})
        assert f"{host}{path}".startswith("cloudbuild.googleapis.com/v1/projects/proj/builds")
        assert parse_qs(url.query)["$alt"] == ["json;enum-encoding=int"]
        if request.method == "POST":
            assert isinstance(request.body, str | bytes)
            return self._submit(json.loads(request.body))
        if path.endswith("/builds"):
            (wanted,) = parse_qs(url.query)["filter"]
            found = [build for build in self.builds if wanted in [f'tags="{tag}"' for tag in build["tags"]]]
            return reply(200, as_published(ListBuildsResponse.pb(ListBuildsResponse()), {"builds": found}))
        build = next(build for build in self.builds if build["id"] == path.rpartition("/")[2])
        shown = dict(build)
        self._go_on(build)
        return reply(200, as_published(Build.pb(Build()), shown))

    def _submit(self, asked: dict[str, Any]) -> requests.Response:
        self.submitted.append(asked)
        number = len(self.submitted)
        link = f"https://console.cloud.google.com/cloud-build/builds/{number}?project=1"
        made = {"id": f"build-{number}", "projectId": "proj", "status": "WORKING", "logUrl": link}
        self.builds.append({**asked, **made})
        metadata = {
            "@type": "type.googleapis.com/google.devtools.cloudbuild.v1.BuildOperationMetadata",
            "build": {**self.builds[-1], "status": "QUEUED"},
        }
        operation = {"name": f"operations/build/proj/{number}", "metadata": metadata}
        return reply(200, as_published(Operation(), operation))

    def _go_on(self, build: dict[str, Any]) -> None:
        build.update(self.ending)
        if build["status"] == "SUCCESS":
            digest = "sha256:" + build["id"].removeprefix("build-") * 64
            self.images |= dict.fromkeys(build["images"], digest)
            build["results"] = {"images": [{"name": name, "digest": digest} for name in build["images"]]}


def as_published(message: Message, value: dict[str, Any]) -> dict[str, Any]:
    """The value as an API with this message sends it. Raises ParseError where it could not."""
    return MessageToDict(ParseDict(value, message), use_integers_for_enums=True)


def reply(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    response._content = json.dumps(body).encode()
    response.headers.update({"Content-Type": "application/json"} | (headers or {}))
    response.request = requests.Request("GET", "https://fake").prepare()
    return response


def refusal(status: int, code: str, message: str) -> requests.Response:
    """As a registry says no."""
    return reply(status, {"errors": [{"code": code, "message": message}]})


def api_refusal(status: int, code: str, message: str) -> requests.Response:
    """As Google's other services do."""
    return reply(status, {"error": {"code": status, "message": message, "status": code}})


def connect(google: FakeGoogle, patch: pytest.MonkeyPatch) -> None:
    """What goes out by HTTPS from here on goes to the fake; a server on this machine is reached as ever."""
    real = HTTPAdapter.send

    def send(adapter: HTTPAdapter, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        if str(request.url).startswith("https://"):
            return google.send(request)
        return real(adapter, request, *args, **kwargs)

    patch.setattr(HTTPAdapter, "send", send)
