"""Artifacts copied between stores: whole and the same or not there, whatever breaks in between."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt import transfer
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.errors import FatalError
from nothing_gpt.store import FolderStore, open_store
from nothing_gpt.transfer import copy
from tests.fake_gcs import FakeGCS

pytestmark = pytest.mark.every_store

FILES = {f"file-{number}": f"content {number}" for number in range(12)} | {"sub/more": "more", "empty": ""}


@pytest.fixture
def here(tmp_path: Path) -> Workshop:
    """Where the artifact is made: a folder."""
    return Workshop(open_store(str(tmp_path / "here")), tmp_path / "work")


@pytest.fixture
def made(here: Workshop) -> Artifact:
    return make(here)


def make(workshop: Workshop, files: Mapping[str, str] = FILES, failed: int = 0) -> Artifact:
    def build(folder: Path) -> Mapping[str, Any]:
        for file, text in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text)
        return {"rows": len(files), "failed": failed}

    return workshop.make(Stage("lines", 1), {}, {}, build)


def test_a_copy_is_the_same_artifact(here: Workshop, made: Artifact, workshop: Workshop) -> None:
    copied = copy(made.key, here, workshop)
    assert (copied.key, copied.digest, copied.uri) == (made.key, made.digest, workshop.store.uri)
    assert workshop.manifest(made.key) == here.manifest(made.key)
    found = workshop.find(made.stage, made.fingerprint)
    assert found is not None
    folder = workshop.folder(found)
    assert {name: (folder / name).read_text() for name in FILES} == FILES


def test_a_copy_goes_there_and_back(here: Workshop, made: Artifact, workshop: Workshop, tmp_path: Path) -> None:
    copy(made.key, here, workshop)
    elsewhere = Workshop(open_store(str(tmp_path / "elsewhere")), tmp_path / "work")
    assert copy(made.key, workshop, elsewhere).digest == made.digest
    assert make(elsewhere).reused


def test_what_is_there_already_is_not_sent_again(here: Workshop, made: Artifact, workshop: Workshop) -> None:
    assert not copy(made.key, here, workshop).reused
    workshop.store.upload = None  # type: ignore[assignment, method-assign]
    assert copy(made.key, here, workshop).reused


def test_another_one_with_the_same_key_is_left_as_it_is(here: Workshop, made: Artifact, workshop: Workshop) -> None:
    other = make(workshop, {"file-0": "made elsewhere"})
    assert other.key == made.key
    with pytest.raises(FatalError, match=f"{made.key}: made there too, with other content"):
        copy(made.key, here, workshop)
    found = workshop.find(made.stage, made.fingerprint)
    assert found is not None
    assert found.digest == other.digest


def test_one_in_which_fewer_rows_failed_takes_the_others_place(here: Workshop, workshop: Workshop) -> None:
    lacking, whole = make(workshop, {"a": "1", "b": ""}, failed=1), make(here, {"a": "1", "b": "2"})
    assert lacking.key == whole.key
    assert copy(whole.key, here, workshop).digest == whole.digest
    assert workshop.file(whole, "b").read_text() == "2"


def test_a_damaged_copy_is_mended(here: Workshop, made: Artifact, workshop: Workshop) -> None:
    copy(made.key, here, workshop)
    workshop.store.write(f"{made.key}/file-3", b"damaged")
    workshop.store.delete(f"{made.key}/file-4")
    assert not copy(made.key, here, workshop).reused
    assert workshop.find(made.stage, made.fingerprint)


@pytest.mark.parametrize("harm", ["altered", "missing", "manifest missing"])
def test_what_is_not_whole_is_not_copied(here: Workshop, workshop: Workshop, harm: str) -> None:
    made = make(workshop)
    match harm:
        case "altered":
            workshop.store.write(f"{made.key}/file-3", b"other")
        case "missing":
            workshop.store.delete(f"{made.key}/file-3")
        case "manifest missing":
            workshop.store.delete(f"{made.key}/manifest.json")
    with pytest.raises(FatalError, match=f"{workshop.store.uri}/{made.key}: not there, or damaged"):
        copy(made.key, workshop, here)
    assert list(here.store.list()) == ["FORMAT"]


@pytest.mark.parametrize("key", ["lines", "lines/", "../lines/0123456789abcdef", "lines/0123456789ABCDEF", "a/b/c"])
def test_what_is_no_key_is_refused(here: Workshop, workshop: Workshop, key: str) -> None:
    with pytest.raises(FatalError, match="no artifact's key; give STAGE/FINGERPRINT"):
        copy(key, here, workshop)


def test_a_copy_that_breaks_off_is_no_artifact(here: Workshop, made: Artifact, workshop: Workshop) -> None:
    upload = workshop.store.upload

    def breaks_off(file: Path, key: str) -> None:
        if key.endswith("file-7"):
            raise KeyboardInterrupt
        upload(file, key)

    workshop.store.upload = breaks_off  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        copy(made.key, here, workshop)
    assert workshop.find(made.stage, made.fingerprint) is None
    workshop.store.upload = upload  # type: ignore[method-assign]
    assert not copy(made.key, here, workshop).reused


@pytest.mark.contended
def test_of_two_that_copy_at_once_one_sends_and_both_end_well(
    here: Workshop, made: Artifact, workshop: Workshop
) -> None:
    start, copied = threading.Barrier(2), []

    def work() -> None:
        start.wait()
        copied.append(copy(made.key, here, workshop))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(artifact.reused for artifact in copied) == [False, True]
    assert {artifact.digest for artifact in copied} == {made.digest}


@pytest.mark.contended
def test_a_copy_waits_for_a_run_that_makes_the_same_artifact(
    here: Workshop, made: Artifact, workshop: Workshop
) -> None:
    building, finish, copied = threading.Event(), threading.Event(), []

    def slowly(folder: Path) -> Mapping[str, Any]:
        building.set()
        finish.wait(20)
        for file, text in FILES.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text)
        return {}

    run = threading.Thread(target=lambda: workshop.make(Stage("lines", 1), {}, {}, slowly))
    run.start()
    assert building.wait(20)
    other = threading.Thread(target=lambda: copied.append(copy(made.key, here, workshop)))
    other.start()
    finish.set()
    run.join()
    other.join()
    assert copied[0].reused


@pytest.mark.gcs
def test_files_go_several_at_once(
    here: Workshop, made: Artifact, gcs: FakeGCS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many uploads as there are workers meet on the server; with fewer at once they would wait for ever."""
    meeting = threading.Barrier(transfer.FILES_AT_ONCE, timeout=20)
    bucket = Workshop(open_store("gs://bucket"), tmp_path / "work")
    # The lease comes first.
    gcs.faults["insert"] = [None, *[meeting.wait] * transfer.FILES_AT_ONCE]
    copy(made.key, here, bucket)
    assert not meeting.broken


def test_the_source_is_not_changed(here: Workshop, made: Artifact, workshop: Workshop) -> None:
    assert isinstance(here.store, FolderStore)
    before = {path: path.stat().st_mtime_ns for path in here.store.root.rglob("*")}
    copy(made.key, here, workshop)
    assert {path: path.stat().st_mtime_ns for path in here.store.root.rglob("*")} == before
