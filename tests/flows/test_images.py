"""`nothing-gpt image`: what the registry has by this content or Cloud Build makes of it, on the standard output."""

from typing import get_args

import pytest
from google.auth.credentials import AnonymousCredentials

from flows.cli import ImageName
from nothing_gpt.config import GKESettings
from nothing_gpt.jobs import image
from tests.fake_gcs import FakeGCS
from tests.flows.conftest import Call
from tests.jobs.fake_google import REGISTRY, FakeGoogle, connect


@pytest.fixture
def google(gcs: FakeGCS, monkeypatch: pytest.MonkeyPatch) -> FakeGoogle:
    fake = FakeGoogle()
    connect(fake, monkeypatch)
    monkeypatch.setattr("google.auth.default", lambda **_: (AnonymousCredentials(), "proj"))
    monkeypatch.setattr(image, "POLL_S", 0.0)
    return fake


@pytest.fixture
def cloud(program: Call) -> Call:
    """The program with a registry and a bucket."""
    values = ("place.bucket=gs://bucket/runs", f"place.gke.registry={REGISTRY}")
    return lambda *arguments: program(*arguments, *(part for value in values for part in ("--set", value)))


@pytest.mark.parametrize("name", ["train", "worker", "serve"])
def test_an_image_is_built_once_and_its_digest_is_all_that_is_printed(
    google: FakeGoogle, gcs: FakeGCS, cloud: Call, name: str
) -> None:
    ended = cloud("image", name)
    assert (ended.code, ended.out) == (0, f"{REGISTRY}/{name}@sha256:{'1' * 64}\n")
    assert cloud("image", name).out == ended.out
    (build,) = google.submitted
    assert f"--file=deployments/docker/{name}.Dockerfile" in build["steps"][0]["args"]
    assert gcs.content(build["source"]["storageSource"]["object"])


def test_the_training_image_is_the_one_that_a_run_takes(google: FakeGoogle, cloud: Call) -> None:
    printed = cloud("image", "train").out.strip()
    assert image.found(GKESettings(registry=REGISTRY)) == printed
    assert len(google.submitted) == 1


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (f"place.gke.registry={REGISTRY}", "place.bucket: not set; give gs://BUCKET/PREFIX"),
        ("place.bucket=gs://bucket/runs", "place.gke.registry is not set; name the Artifact Registry repository, LOC"),
    ],
)
def test_what_is_not_set_is_one_line(program: Call, given: str, complaint: str) -> None:
    assert program("image", "worker", "--set", given).error.startswith(complaint)


def test_an_image_that_there_is_not_is_named_with_those_that_there_are(program: Call) -> None:
    ended = program("image", "trian")
    assert (ended.code, ended.out) == (2, "")
    assert "'trian' is not one of 'train'" in ended.err


def test_the_names_are_those_of_the_dockerfiles() -> None:
    names = {file.stem for file in (image.ROOT / "deployments" / "docker").glob("*.Dockerfile")}
    assert names == set(get_args(get_args(ImageName)[0]))
