"""Images of `deployments/docker`: found in Artifact Registry by a hash of their content, else built by Cloud Build.

An image is tagged with the hash of its build context: its Dockerfile and the files that its `.dockerignore` lets
through. So a change of a test or a document builds nothing, and checkouts of the same content share one image. A build
that is under way is waited for, not doubled. What the base image's own tag stands for is no part of the hash.
"""

import gzip
import hashlib
import io
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import google.auth
import requests
from docker.utils.build import exclude_paths
from google.api_core import exceptions as api
from google.api_core.retry import Retry, if_exception_type
from google.auth import exceptions as auth
from google.auth.credentials import Credentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud.devtools.cloudbuild_v1 import (
    Build,
    BuildOperationMetadata,
    BuildOptions,
    BuildStep,
    CloudBuildClient,
    Source,
    StorageSource,
)
from google.protobuf.duration_pb2 import Duration

from nothing_gpt.config.place import GKESettings
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.progress import say
from nothing_gpt.store import open_store

ROOT = Path(__file__).parents[2]
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
REQUEST_S = 30.0
RETRY = Retry(
    if_exception_type(
        api.ServerError, api.TooManyRequests, requests.ConnectionError, requests.Timeout, auth.TransportError
    ),
    timeout=120.0,
)
POLL_S = 5.0
QUEUE_S = 1800
"""Longest wait of a build for its machine."""
BUILD_S = 3600
"""Longest build: most of it is fetching, compressing and pushing some GB of CUDA libraries, in the first one only."""
MANIFESTS = ", ".join(
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]
)
UNFINISHED = (Build.Status.PENDING, Build.Status.QUEUED, Build.Status.WORKING)
PASSING = (Build.Status.INTERNAL_ERROR, Build.Status.EXPIRED)
"""Ends of a build that are not the fault of what is built."""


def found(settings: GKESettings, credentials: Credentials | None = None, root: Path = ROOT) -> str | None:
    """The training image that the settings name, or else the digest reference of the one with this content; None where
    the registry has none, and `ensure` would build it. `root` is the checkout.

    Raises:
        FatalError: no registry is named, it does not exist, something is forbidden, or there is no checkout.
        TransientError: Google Cloud cannot be reached now.
    """
    if settings.image:
        return settings.image
    if not settings.registry:
        raise FatalError("place.gke.registry is not set; name the Artifact Registry repository, or place.gke.image")
    with _reporting(settings.registry, settings.registry.split("/")[1]):
        return _found(f"{settings.registry}/train", content_tag(build_context("train", root)), _authorised(credentials))


def ensure(name: str, registry: str, bucket: str, credentials: Credentials | None = None, root: Path = ROOT) -> str:
    """The digest reference of the image of `deployments/docker/NAME.Dockerfile`, built if the registry has none.

    `bucket`, gs://BUCKET/PREFIX, takes what is sent to Cloud Build. `credentials` are by default what
    google.auth.default finds.

    Raises:
        FatalError: as `found`, or the build failed. TransientError: as `found`, or the build did not end in time.
    """
    context = build_context(name, root)
    tag = content_tag(context)
    project = registry.split("/")[1]
    with _reporting(registry, project):
        credentials = _authorised(credentials)
        if there := _found(f"{registry}/{name}", tag, credentials):
            return there
        client = CloudBuildClient(credentials=credentials, transport="rest")
        build = _under_way(client, project, f"{name}-{tag}")
        if build is None:
            source = _upload(context, f"images/{name}-{tag}.tar.gz", bucket, credentials)
            build = _submit(client, project, name, f"{registry}/{name}", tag, source)
        return f"{registry}/{name}@{_wait(client, project, build, f'{registry}/{name}:{tag}')}"


def build_context(name: str, root: Path = ROOT) -> bytes:
    """What an image is made of, as a tar archive: the same bytes wherever the same files are.

    It holds paths, bytes and executable bits, and neither times nor owners.

    Raises:
        FatalError: `root` is no checkout.
    """
    dockerfile = f"deployments/docker/{name}.Dockerfile"
    try:
        lines = (root / f"{dockerfile}.dockerignore").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FatalError(
            f"{root} has no {dockerfile} to build the image from: this is no checkout of the project; "
            "run from one, or name the image in place.gke.image"
        ) from None
    patterns = [line for line in lines if line and not line.startswith("#")]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(exclude_paths(str(root), patterns, dockerfile=dockerfile)):
            file = root / path
            if file.is_file():
                content = file.read_bytes()
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                entry.mode = 0o755 if file.stat().st_mode & 0o100 else 0o644
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def content_tag(context: bytes) -> str:
    """The tag of the image that a build context makes."""
    return hashlib.sha256(context).hexdigest()[:16]


def _authorised(credentials: Credentials | None) -> Credentials:
    return credentials or google.auth.default(scopes=[SCOPE])[0]


def _found(repository: str, tag: str, credentials: Credentials) -> str | None:
    """A tag's reference by digest, from the registry's HTTP API (OCI distribution specification); None if there is no
    such tag."""
    host, path = repository.split("/", 1)
    session = AuthorizedSession(credentials)

    def ask() -> str | None:
        url = f"https://{host}/v2/{path}/manifests/{tag}"
        response = session.get(url, headers={"Accept": MANIFESTS}, timeout=REQUEST_S)
        if response.ok:
            return f"{repository}@{response.headers['Docker-Content-Digest']}"
        try:
            error = response.json()["errors"][0]
        except (ValueError, KeyError, IndexError, TypeError):
            raise api.from_http_response(response) from None
        if error["code"] == "MANIFEST_UNKNOWN":
            return None
        raise api.from_http_status(response.status_code, error["message"])

    return RETRY(ask)()


def _under_way(client: CloudBuildClient, project: str, tag: str) -> Build | None:
    """A build of the same content that another run, or an earlier try of this one, has submitted."""
    builds = client.list_builds(project_id=project, filter=f'tags="{tag}"', retry=RETRY, timeout=REQUEST_S)
    return next((build for build in builds if build.status in UNFINISHED), None)


def _upload(context: bytes, key: str, bucket: str, credentials: Credentials) -> Source:
    store = open_store(bucket, credentials)
    store.write(key, gzip.compress(context, mtime=0))
    name, *prefix = store.uri.removeprefix("gs://").split("/", 1)
    return Source(storage_source=StorageSource(bucket=name, object_="/".join([*prefix, key])))


def _submit(client: CloudBuildClient, project: str, name: str, repository: str, tag: str, source: Source) -> Build:
    # `latest` is there for its layers: what did not change since the last build is neither made nor pushed again.
    latest = f"{repository}:latest"
    step = BuildStep(
        name="gcr.io/cloud-builders/docker",
        env=["DOCKER_BUILDKIT=1"],
        args=[
            "build",
            f"--file=deployments/docker/{name}.Dockerfile",
            f"--tag={repository}:{tag}",
            f"--tag={latest}",
            f"--cache-from={latest}",
            "--build-arg=BUILDKIT_INLINE_CACHE=1",
            ".",
        ],
    )
    build = Build(
        source=source,
        steps=[step],
        images=[f"{repository}:{tag}", latest],
        tags=["nothing-gpt", f"{name}-{tag}"],
        timeout=Duration(seconds=BUILD_S),
        queue_ttl=Duration(seconds=QUEUE_S),
        options=BuildOptions(
            machine_type=BuildOptions.MachineType.E2_HIGHCPU_8,
            disk_size_gb=100,
            logging=BuildOptions.LoggingMode.CLOUD_LOGGING_ONLY,
        ),
    )
    # Not tried again here: whether the request arrived, the next run sees in the list of builds.
    operation = client.create_build(project_id=project, build=build, timeout=REQUEST_S)
    return cast(BuildOperationMetadata, operation.metadata).build


def _wait(client: CloudBuildClient, project: str, build: Build, reference: str) -> str:
    """The digest that a build has pushed."""
    say(f"{reference} is being built, log: {build.log_url}")
    deadline = time.monotonic() + QUEUE_S + BUILD_S
    while build.status in UNFINISHED:
        if time.monotonic() > deadline:
            raise TransientError(f"{reference}: its build has not ended; see {build.log_url}, and run again to wait on")
        time.sleep(POLL_S)
        build = client.get_build(project_id=project, id=build.id, retry=RETRY, timeout=REQUEST_S)
    if build.status == Build.Status.SUCCESS:
        say(f"{reference} is built")
        return build.results.images[0].digest
    kind = TransientError if build.status in PASSING else FatalError
    reason = build.failure_info.detail or build.status_detail or "no reason given"
    raise kind(f"{reference}: its build ended as {build.status.name} ({_line(reason)}); see {build.log_url}")


@contextmanager
def _reporting(registry: str, project: str) -> Iterator[None]:
    """Turns the libraries' errors into ours, one clear line each."""
    try:
        yield
    except auth.DefaultCredentialsError:
        raise FatalError(
            f"{registry}: no Google Cloud credentials; run `gcloud auth application-default login`, or name the image "
            "in place.gke.image"
        ) from None
    except (api.Unauthorized, auth.RefreshError) as error:
        raise FatalError(
            f"{registry}: the Google Cloud credentials are refused ({_reason(error)}); run "
            "`gcloud auth application-default login` again, or renew the key"
        ) from None
    except api.Forbidden as error:
        raise FatalError(
            f"{registry}: forbidden ({_reason(error)}); give the account roles/artifactregistry.reader and "
            f"roles/cloudbuild.builds.editor in the project {project}, and see that it has the services: "
            f"`gcloud services enable artifactregistry.googleapis.com cloudbuild.googleapis.com --project={project}`"
        ) from None
    except api.NotFound as error:
        host, _, repository = registry.split("/")
        raise FatalError(
            f"{registry}: not found ({_reason(error)}); correct place.gke.registry, or make it with `gcloud artifacts "
            f"repositories create {repository} --repository-format=docker --project={project} "
            f"--location={host.removesuffix('-docker.pkg.dev')}`"
        ) from None
    except api.RetryError as error:
        raise TransientError(
            f"{registry}: tried again for {RETRY.timeout:.0f} s ({_reason(error.cause or error)}); run again later"
        ) from None
    except (api.ServerError, api.TooManyRequests, auth.GoogleAuthError, requests.RequestException) as error:
        raise TransientError(f"{registry}: Google Cloud does not answer ({_reason(error)}); run again") from None
    except api.GoogleAPICallError as error:
        raise FatalError(f"{registry}: refused ({error.code}: {_reason(error)}); mend that, and run again") from None


def _reason(error: BaseException) -> str:
    """The server's own words, or what is at the bottom of an error."""
    while error.__context__ is not None and not isinstance(error, api.GoogleAPICallError):
        error = error.__context__
    return _line(str(getattr(error, "message", "") or error) or type(error).__name__)


def _line(text: str) -> str:
    return " ".join(text.split())
