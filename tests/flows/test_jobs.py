"""`nothing-gpt jobs`: the training Jobs on a cluster, which here is a fake of its API."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.conftest import Call
from tests.jobs import objects
from tests.jobs.fake_api import FakeApi, serving

LABELS = {"nothing-gpt/fingerprint": "0123abcd"}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    """A Job with one pod that has ended."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with serving(tmp_path / "kubeconfig") as fake:
        fake.put("jobs", {"metadata": {"name": "train-a", "labels": LABELS}})
        fake.put("pods", objects.pod("train-a-x", **objects.ended(75)))
        fake.write("train-a-x", "2026-11-21T12:00:00.5Z step 1", "2026-11-21T12:00:00.5Z saved", end=True)
        yield fake


@pytest.mark.usefixtures("cluster")
def test_the_jobs_are_listed_with_their_newest_pod(program: Call) -> None:
    printed = program("jobs", "list").out.split()  # a narrow terminal folds the columns
    assert printed[:3] == ["job", "state", "pods"]
    assert {"train-a", "active", "1", "tried", "0123abcd"} <= set(printed)


def test_no_jobs_are_said_to_be_none(program: Call, cluster: FakeApi) -> None:
    cluster.remove("jobs", "train-a")
    assert program("jobs", "list").out.strip() == "no training Jobs in namespace nothing-gpt"


@pytest.mark.usefixtures("cluster")
def test_a_jobs_log_goes_to_the_standard_output(program: Call) -> None:
    assert program("jobs", "logs", "train-a").out == "step 1\nsaved\n"


def test_a_cancelled_job_is_gone(program: Call, cluster: FakeApi) -> None:
    assert "train-a and its pods are gone" in program("jobs", "cancel", "train-a").err
    assert not cluster.objects["jobs"]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("command", ["logs", "cancel"])
@pytest.mark.parametrize("name", ["train-b", "", "../pods/train-a-x", "train-a?x"])
def test_a_job_that_is_not_there_is_named(program: Call, command: str, name: str) -> None:
    assert program("jobs", command, name).error.startswith(f"no Job {name} in namespace nothing-gpt; `nothing-gpt jobs")


def test_a_cluster_that_cannot_be_reached_is_one_line(
    program: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert program("jobs", "list").error.startswith("no cluster: ")


def test_a_cluster_that_does_not_answer_is_one_line(
    program: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with serving(tmp_path / "kubeconfig"):
        pass
    ended = program("jobs", "list")
    assert ended.code == 75
    assert ended.err.startswith("error: the cluster at http://127.0.0.1:")
    assert len(ended.err.splitlines()) == 1
