"""The training image: found by its content, or built once, and every way in which that fails is one line."""

import functools
import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import requests
from google.auth import exceptions as auth
from google.auth.credentials import Credentials
from pydantic import ValidationError

from nothing_gpt.config.place import GKESettings
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.jobs import image as images
from nothing_gpt.store import open_store
from tests.conftest import REPOSITORY
from tests.fake_gcs import BUCKET, FakeGCS
from tests.jobs.fake_google import REGISTRY, FakeGoogle, api_refusal, connect, refusal


class Anyone(Credentials):
    """Credentials that every server takes, unless it is told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.token = "token"

    def refresh(self, request: object) -> None:
        """There is nothing to renew."""


PLACE = f"gs://{BUCKET}/runs"
SETTINGS = GKESettings(registry=REGISTRY)


@pytest.fixture
def google(gcs: FakeGCS, monkeypatch: pytest.MonkeyPatch) -> FakeGoogle:
    """Google Cloud, with a client that neither sleeps nor is patient."""
    fake = FakeGoogle()
    connect(fake, monkeypatch)
    monkeypatch.setattr(images, "POLL_S", 0.0)
    monkeypatch.setattr(images, "RETRY", images.RETRY.with_delay(initial=0.001, maximum=0.01))
    return fake


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a small library, and with what is in the way in a real one."""
    root = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "deployments/docker", root / "deployments/docker")
    for file in ("locks/train.txt", "locks/project.txt", "nothing_gpt/dpo/train.py", "nothing_gpt/rubric.md"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, root / file)
    for file in ("tests/test_it.py", "docs/it.md", "data/big", ".venv/x.py", ".env", "nothing_gpt/__pycache__/a.pyc"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("secret")
    return root


@pytest.fixture
def find(checkout: Path) -> functools.partial[str]:
    return functools.partial(images.ensure, "train", REGISTRY, PLACE, Anyone(), checkout)


def tag(checkout: Path) -> str:
    return images.content_tag(images.build_context("train", checkout))


class TestContent:
    def test_the_context_is_what_the_dockerfile_copies_and_nothing_else(self, checkout: Path) -> None:
        with tarfile.open(fileobj=io.BytesIO(images.build_context("train", checkout))) as archive:
            assert archive.getnames() == [
                "deployments/docker/train.Dockerfile",
                "locks/train.txt",
                "nothing_gpt/dpo/train.py",
                "nothing_gpt/rubric.md",
            ]

    @pytest.mark.parametrize(
        "file", ["nothing_gpt/dpo/train.py", "locks/train.txt", "deployments/docker/train.Dockerfile"]
    )
    def test_a_change_of_what_goes_in_is_another_image(self, checkout: Path, file: str) -> None:
        before = tag(checkout)
        with (checkout / file).open("a") as opened:
            opened.write("# more\n")
        assert tag(checkout) != before

    def test_a_new_file_a_new_name_and_an_executable_bit_are_other_images(self, checkout: Path) -> None:
        tags = [tag(checkout)]
        (checkout / "nothing_gpt/new.py").touch()
        tags.append(tag(checkout))
        (checkout / "nothing_gpt/new.py").rename(checkout / "nothing_gpt/newer.py")
        tags.append(tag(checkout))
        (checkout / "nothing_gpt/newer.py").chmod(0o755)
        tags.append(tag(checkout))
        assert len(set(tags)) == 4

    @pytest.mark.parametrize(
        "file",
        ["tests/test_it.py", "docs/it.md", "data/big", ".env", "locks/project.txt", "nothing_gpt/__pycache__/a.pyc",
         "nothing_gpt/.train.py.swp", "deployments/docker/serve.Dockerfile"],
    )  # fmt: skip
    def test_a_change_of_anything_else_is_the_same_image(self, checkout: Path, file: str) -> None:
        before = tag(checkout)
        (checkout / file).write_text("changed")
        assert tag(checkout) == before

    def test_neither_times_nor_the_folder_nor_other_bits_of_the_mode_count(self, checkout: Path) -> None:
        before = tag(checkout)
        os.utime(checkout / "nothing_gpt/dpo/train.py", (0, 0))
        (checkout / "nothing_gpt/dpo/train.py").chmod(0o600)
        assert tag(checkout.rename(checkout.with_name("elsewhere"))) == before

    def test_without_a_checkout_it_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(FatalError, match=r"no checkout of the project; run from one, or name .* place.gke.image$"):
            images.build_context("train", tmp_path)


class TestFinding:
    def test_without_image_and_registry_it_says_what_to_set(self) -> None:
        with pytest.raises(FatalError, match=r"^place\.gke\.registry is not set"):
            images.found(GKESettings())

    @pytest.mark.parametrize("registry", ["images", "docker.io/me/images", f"{REGISTRY}/train", f"{REGISTRY}:latest"])
    def test_the_settings_refuse_an_address_that_is_no_repository(self, registry: str) -> None:
        with pytest.raises(ValidationError, match="registry"):
            GKESettings(registry=registry)

    def test_an_image_that_is_there_is_not_built(
        self, google: FakeGoogle, find: functools.partial[str], checkout: Path
    ) -> None:
        google.images[f"{REGISTRY}/train:{tag(checkout)}"] = "sha256:" + "a" * 64
        assert find() == f"{REGISTRY}/train@sha256:{'a' * 64}"
        assert google.submitted == []

    def test_whether_it_is_there_is_seen_without_building(self, google: FakeGoogle, checkout: Path) -> None:
        assert images.found(SETTINGS, Anyone(), checkout) is None
        assert google.submitted == []
        google.images[f"{REGISTRY}/train:{tag(checkout)}"] = "sha256:" + "a" * 64
        assert images.found(SETTINGS, Anyone(), checkout) == f"{REGISTRY}/train@sha256:{'a' * 64}"

    def test_a_named_image_is_taken_as_it_is(self, google: FakeGoogle) -> None:
        assert images.found(GKESettings(image="mine@sha256:1")) == "mine@sha256:1"

    def test_a_server_that_is_overloaded_for_a_moment_is_asked_again(
        self, google: FakeGoogle, find: functools.partial[str], checkout: Path
    ) -> None:
        google.images[f"{REGISTRY}/train:{tag(checkout)}"] = "sha256:" + "a" * 64
        burst = [refusal(503, "UNAVAILABLE", "busy"), refusal(429, "BUSY", "busy"), refusal(500, "INTERNAL", "oops")]
        google.answer = lambda url: burst.pop() if burst else None
        assert find() == f"{REGISTRY}/train@sha256:{'a' * 64}"
        assert burst == []


class TestBuilding:
    def test_an_image_that_is_missing_is_built_once(
        self, google: FakeGoogle, find: functools.partial[str], checkout: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert find() == find() == f"{REGISTRY}/train@sha256:{'1' * 64}"
        (build,) = google.submitted
        image = f"{REGISTRY}/train:{tag(checkout)}"
        assert build["steps"] == [
            {
                "name": "gcr.io/cloud-builders/docker",
                "env": ["DOCKER_BUILDKIT=1"],
                "args": [
                    "build", "--file=deployments/docker/train.Dockerfile", f"--tag={image}",
                    f"--tag={REGISTRY}/train:latest", f"--cache-from={REGISTRY}/train:latest",
                    "--build-arg=BUILDKIT_INLINE_CACHE=1", ".",
                ],
            }
        ]  # fmt: skip
        assert build["images"] == [image, f"{REGISTRY}/train:latest"]
        assert build["tags"] == ["nothing-gpt", f"train-{tag(checkout)}"]
        assert (build["timeout"], build["queueTtl"]) == ("3600s", "1800s")
        assert build["options"]["diskSizeGb"] == "100"
        assert images.BuildOptions.MachineType(build["options"]["machineType"]).name == "E2_HIGHCPU_8"
        assert images.BuildOptions.LoggingMode(build["options"]["logging"]).name == "CLOUD_LOGGING_ONLY"
        assert build["source"] == {
            "storageSource": {"bucket": BUCKET, "object": f"runs/images/train-{tag(checkout)}.tar.gz"}
        }
        assert "https://console.cloud.google.com/cloud-build/builds/1?project=1" in capfd.readouterr().err

    def test_the_builder_gets_the_context_through_the_bucket(
        self, google: FakeGoogle, find: functools.partial[str], checkout: Path
    ) -> None:
        find()
        sent = open_store(PLACE).read(f"images/train-{tag(checkout)}.tar.gz")
        assert sent is not None
        assert gzip.decompress(sent) == images.build_context("train", checkout)

    def test_a_build_that_another_has_submitted_is_waited_for(
        self, google: FakeGoogle, find: functools.partial[str], checkout: Path
    ) -> None:
        find()
        google.images.clear()
        google.builds[0]["status"] = "WORKING"
        assert find() == f"{REGISTRY}/train@sha256:{'1' * 64}"
        assert len(google.submitted) == 1

    def test_a_failed_build_of_the_same_content_is_not_waited_for(
        self, google: FakeGoogle, find: functools.partial[str]
    ) -> None:
        google.ending = {"status": "FAILURE"}
        with pytest.raises(FatalError):
            find()
        google.ending = {"status": "SUCCESS"}
        assert find() == f"{REGISTRY}/train@sha256:{'2' * 64}"

    def test_two_that_submit_at_the_same_moment_both_end_well(
        self, google: FakeGoogle, find: functools.partial[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(images, "_under_way", lambda *_: None)
        first = find()
        google.images.clear()
        assert (first, find()) == (f"{REGISTRY}/train@sha256:{'1' * 64}", f"{REGISTRY}/train@sha256:{'2' * 64}")

    @pytest.mark.parametrize(("status", "kind"), [("FAILURE", FatalError), ("INTERNAL_ERROR", TransientError)])
    def test_a_failed_build_is_one_line_with_the_link_to_its_log(
        self, google: FakeGoogle, find: functools.partial[str], status: str, kind: type[Exception]
    ) -> None:
        google.ending = {"status": status, "failureInfo": {"type": "USER_BUILD_STEP", "detail": "step 0\nexited 1"}}
        with pytest.raises(kind) as caught:
            find()
        assert str(caught.value).endswith(
            f"its build ended as {status} (step 0 exited 1); see "
            "https://console.cloud.google.com/cloud-build/builds/1?project=1"
        )

    def test_a_build_that_never_ends_is_not_waited_for_without_end(
        self, google: FakeGoogle, find: functools.partial[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        google.ending = {"status": "QUEUED"}
        monkeypatch.setattr(images, "QUEUE_S", 0)
        monkeypatch.setattr(images, "BUILD_S", 0)
        with pytest.raises(TransientError, match=r"its build has not ended; see https://.*, and run again to wait on$"):
            find()


class TestRefusals:
    @pytest.mark.parametrize(
        ("answer", "kind", "says"),
        [
            (
                refusal(404, "NAME_UNKNOWN", 'Repository "images" not found'),
                FatalError,
                r'not found \(Repository "images" not found\); .*`gcloud artifacts repositories create images '
                r"--repository-format=docker --project=proj --location=us-central1`$",
            ),
            (
                refusal(403, "DENIED", 'Permission "artifactregistry.repositories.downloadArtifacts" denied'),
                FatalError,
                r"forbidden \(Permission .* denied\); give the account roles/artifactregistry.reader and ",
            ),
            (refusal(401, "UNAUTHORIZED", "expired"), FatalError, r"credentials are refused \(expired\); run `gcloud"),
            (refusal(400, "UNSUPPORTED", "no"), FatalError, r"refused \(400: no\)"),
        ],
    )
    def test_a_registry_that_says_no(
        self,
        google: FakeGoogle,
        find: functools.partial[str],
        answer: requests.Response,
        kind: type[Exception],
        says: str,
    ) -> None:
        google.answer = lambda url: answer if "docker.pkg.dev" in url else None
        with pytest.raises(kind, match=says) as caught:
            find()
        assert "\n" not in str(caught.value)
        assert google.submitted == []

    def test_cloud_build_that_is_not_enabled(self, google: FakeGoogle, find: functools.partial[str]) -> None:
        refused = api_refusal(403, "PERMISSION_DENIED", "Cloud Build API has not been used in project 1")
        google.answer = lambda url: refused if "cloudbuild" in url else None
        with pytest.raises(FatalError, match=r"has not been used .*`gcloud services enable .* --project=proj`$"):
            find()

    @pytest.mark.parametrize("host", ["docker.pkg.dev", "cloudbuild"])
    def test_a_network_that_is_down_is_for_later(
        self, google: FakeGoogle, find: functools.partial[str], monkeypatch: pytest.MonkeyPatch, host: str
    ) -> None:
        def answer(url: str) -> None:
            if host in url:
                raise requests.ConnectionError("Connection refused")

        google.answer = answer
        monkeypatch.setattr(images, "RETRY", images.RETRY.with_timeout(0.05))
        with pytest.raises(TransientError, match=r"Connection refused\); run again later$"):
            find()

    def test_no_credentials(self, google: FakeGoogle, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def default(scopes: list[str]) -> None:
            raise auth.DefaultCredentialsError("none")

        monkeypatch.setattr(images.google.auth, "default", default)
        with pytest.raises(FatalError, match="no Google Cloud credentials; run `gcloud auth"):
            images.found(SETTINGS, root=checkout)
