"""`nothing-gpt push` and `pull`: finished artifacts between the data folder and a bucket, and whose credentials."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.processes import free_port
from tests.fake_gcs import FakeGCS
from tests.flows.conftest import Call


@pytest.fixture
def made(work: Workshop) -> Artifact:
    def build(folder: Path) -> Mapping[str, Any]:
        (folder / "file").write_text("text")
        return {}

    return work.make(Stage("lines", 1), {}, {}, build)


@pytest.fixture
def cloud(program: Call, gcs: FakeGCS) -> Call:
    """The program with a bucket."""
    return lambda *arguments: program(*arguments, "--set", "place.bucket=gs://bucket/runs")


@pytest.mark.gcs
def test_an_artifact_is_pushed_and_pulled(cloud: Call, gcs: FakeGCS, made: Artifact, work: Workshop) -> None:
    assert f"{made.key} is now in gs://bucket/runs" in cloud("push", made.key).err
    assert gcs.content(f"runs/{made.key}/file") == b"text"
    work.store.delete(f"{made.key}/file")
    assert f"{made.key} is now in {work.store.uri}" in cloud("pull", made.key).err
    assert work.file(made, "file").read_text() == "text"
    assert f"{made.key} was already in {work.store.uri}" in cloud("pull", made.key).err


@pytest.mark.gcs
def test_what_is_not_there_is_one_line(cloud: Call, made: Artifact) -> None:
    missing = "lines/0123456789abcdef"
    assert cloud("push", missing).error.endswith(f"/{missing}: not there, or damaged; make it again, or copy another")
    assert cloud("pull", made.key).error.startswith(f"gs://bucket/runs/{made.key}: not there, or damaged")


@pytest.mark.gcs
def test_a_persons_own_prompts_are_pushed_and_what_is_none_is_refused(
    cloud: Call, gcs: FakeGCS, tmp_path: Path
) -> None:
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"prompt": [{"role": "user", "content": "[ANNA] Well?"}]}\n')
    key = cloud("push", str(prompts)).err.split()[0]
    assert gcs.content(f"runs/{key}/prompts.jsonl") == prompts.read_bytes()
    assert f"{key} was already in gs://bucket/runs" in cloud("push", str(prompts)).err
    assert "no file of prompts, no adapter's folder and no artifact's key" in cloud("push", "nothing").error


@pytest.mark.parametrize("command", ["push", "pull"])
def test_without_a_bucket_there_is_nothing_to_move(program: Call, made: Artifact, command: str) -> None:
    assert program(command, made.key).error.startswith("place.bucket: not set; give gs://BUCKET/PREFIX")
    folder = program(command, made.key, "--set", "place.bucket=my-bucket").error
    assert folder.startswith("place.bucket: my-bucket is no bucket; give gs://BUCKET/PREFIX")
    assert not Path("my-bucket").exists()


@pytest.mark.gcs
def test_the_doctor_tries_the_bucket_and_leaves_nothing_there(cloud: Call, gcs: FakeGCS) -> None:
    assert "ok       bucket gs://bucket/runs" in cloud("doctor").out
    assert list(gcs.objects) == ["runs/FORMAT"]
    gcs.faults["delete"] = [(403, "forbidden", "no storage.objects.delete")]
    assert (
        "MISSING  bucket gs://bucket/runs: prevents push and pull; gs://bucket/runs/probe: forbidden (no "
        "storage.objects.delete); give the account roles/storage.objectUser on the bucket"
    ) in cloud("doctor").out


def test_the_doctor_misses_the_bucket_of_a_place_that_keeps_everything_there(program: Call) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    values = {
        "place.kind": "gke",
        "place.base_model": "some/model",
        "prompts.paths": "[prompts.jsonl]",
        "place.serve_url": nowhere,
        "place.judge_url": nowhere,
    }
    ended = program("doctor", *(part for name, value in values.items() for part in ("--set", f"{name}={value}")))
    assert "MISSING  bucket: prevents everything; place.bucket: not set; give gs://BUCKET/PREFIX" in ended.out
