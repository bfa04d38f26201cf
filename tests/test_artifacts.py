"""Artifacts: made once, whole or not there, never mistaken for one another, and built by one run at a time."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from nothing_gpt import artifacts
from nothing_gpt.artifacts import Artifact, Stage, Workshop, lease, live_leases
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.store import Store, open_store
from tests.conftest import Start

pytestmark = pytest.mark.every_store

STAGE = Stage("lines", 1)


class Builder:
    """Writes a text to `out.txt` and counts how often it was asked to."""

    def __init__(self, text: str = "text"):
        self.text = text
        self.built = 0

    def __call__(self, folder: Path) -> Mapping[str, Any]:
        self.built += 1
        (folder / "out.txt").write_text(self.text)
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / "more.txt").write_text("more")
        return {"rows": 3}


@pytest.fixture
def build() -> Builder:
    return Builder()


class Lacking:
    """Writes what it has; each next try finds so many rows failed, and writes another text."""

    def __init__(self, *failed: int | Exception):
        self.failed = list(failed)

    def __call__(self, folder: Path) -> Mapping[str, Any]:
        failed = self.failed.pop(0)
        if isinstance(failed, Exception):
            raise failed
        (folder / "out.txt").write_text(f"attempt {len(self.failed)}")
        return {"rows": 3 - failed, "failed": failed}


def test_an_artifact_is_made_once(workshop: Workshop, build: Builder) -> None:
    first = workshop.make(STAGE, {"a": 1}, {}, build)
    second = workshop.make(STAGE, {"a": 1}, {}, build)
    assert build.built == 1
    assert (first.reused, second.reused) == (False, True)
    assert (first.key, first.digest) == (second.key, second.digest)
    assert workshop.counts(second) == {"rows": 3}
    assert workshop.file(second, "out.txt").read_text() == "text"
    assert (workshop.folder(second) / "sub" / "more.txt").read_text() == "more"


def test_an_artifact_that_lacks_failed_rows_is_made_anew_until_none_fail(workshop: Workshop) -> None:
    build = Lacking(2, 1, 0)
    made = [workshop.make(STAGE, {}, {}, build) for _ in range(4)]
    assert [workshop.counts(made[-1])["failed"], build.failed] == [0, []]
    assert [artifact.reused for artifact in made] == [False, False, False, True]
    assert len({artifact.key for artifact in made}) == 1
    assert len({artifact.digest for artifact in made}) == 3
    after = [workshop.make(Stage("next", 1), {}, {"source": source}, Builder()) for source in made]
    assert [artifact.reused for artifact in after] == [False, False, False, True]


def test_an_artifact_stays_as_it_is_where_the_same_rows_fail_again(workshop: Workshop) -> None:
    build = Lacking(1, 1)
    first, second = (workshop.make(STAGE, {}, {}, build) for _ in range(2))
    assert (second.reused, second.digest) == (True, first.digest)
    assert workshop.file(second, "out.txt").read_text() == "attempt 1"
    assert not list(workshop.work.glob("*/*"))


def test_failed_rows_that_cannot_be_tried_again_stop_no_run(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    build = Lacking(1, TransientError("nobody answers"))
    first, second = (workshop.make(STAGE, {}, {}, build) for _ in range(2))
    assert (second.reused, second.digest) == (True, first.digest)
    assert capsys.readouterr().err == (
        "lines: its 1 failed rows cannot be tried again (nobody answers); going on without them\n"
    )


def test_the_manifest_says_what_made_it(workshop: Workshop, build: Builder) -> None:
    source = workshop.make(STAGE, {}, {}, build)
    made = workshop.make(Stage("next", 7), {"a": 1}, {"source": source}, build)
    manifest = workshop.manifest(made.key)
    assert manifest is not None
    assert (manifest.stage, manifest.version, manifest.settings) == ("next", 7, {"a": 1})
    assert (manifest.inputs, manifest.lineage) == ({"source": source.digest}, {"source": source.key})
    assert set(manifest.files) == {"out.txt", "sub/more.txt"}


@pytest.mark.parametrize(
    ("stage", "settings", "text"),
    [
        (Stage("lines", 2), {"a": 1}, "text"),
        (STAGE, {"a": 2}, "text"),
        (STAGE, {"a": 1, "b": 1}, "text"),
        (Stage("words", 1), {"a": 1}, "text"),
        (STAGE, {"a": 1}, "other input"),
    ],
)
def test_another_version_setting_or_input_is_another_artifact(
    workshop: Workshop, build: Builder, stage: Stage, settings: dict[str, int], text: str
) -> None:
    def source(text: str) -> Artifact:
        return workshop.make(Stage("source", 1), {"text": text}, {}, Builder(text))

    first = workshop.make(STAGE, {"a": 1}, {"source": source("text")}, build)
    second = workshop.make(stage, settings, {"source": source(text)}, build)
    assert build.built == 2
    assert first.fingerprint != second.fingerprint


def test_the_order_of_settings_is_no_setting(workshop: Workshop, build: Builder) -> None:
    workshop.make(STAGE, {"a": 1, "b": 2}, {}, build)
    assert workshop.make(STAGE, {"b": 2, "a": 1}, {}, build).reused


def test_an_input_made_anew_with_the_same_bytes_keeps_what_follows_from_it(workshop: Workshop, build: Builder) -> None:
    workshop.make(STAGE, {}, {"source": workshop.make(Stage("source", 1), {}, {}, build)}, build)
    same_bytes = workshop.make(Stage("source", 2), {}, {}, build)
    assert workshop.make(STAGE, {}, {"source": same_bytes}, build).reused


@pytest.mark.parametrize(
    "harm",
    [
        "altered",
        "truncated",
        "missing",
        "manifest missing",
        "manifest cut",
        "manifest of another kind",
        "manifest not text",
    ],
)
def test_a_damaged_artifact_is_made_again(workshop: Workshop, build: Builder, harm: str) -> None:
    made = workshop.make(STAGE, {}, {}, build)
    store, file, manifest = workshop.store, f"{made.key}/out.txt", f"{made.key}/manifest.json"
    match harm:
        case "altered":
            store.write(file, b"tex!")
        case "truncated":
            store.write(file, b"tex")
        case "missing":
            store.delete(file)
        case "manifest missing":
            store.delete(manifest)
        case "manifest cut":
            store.write(manifest, (store.read(manifest) or b"")[:-20])
        case "manifest of another kind":
            store.write(manifest, b"{}")
        case "manifest not text":
            store.write(manifest, b"\xff\xfe")
    assert workshop.find(made.stage, made.fingerprint) is None
    again = workshop.make(STAGE, {}, {}, build)
    assert (build.built, again.reused, again.digest) == (2, False, made.digest)
    assert workshop.file(again, "out.txt").read_text() == "text"


@pytest.mark.parametrize("scratch", ["_checkpoint", ".lock", "_folder/x", "sub/_x", "sub/.x", "sub/_folder/x"])
def test_scratch_is_no_part_of_an_artifact(workshop: Workshop, build: Builder, scratch: str) -> None:
    def build_with_scratch(folder: Path) -> Mapping[str, Any]:
        (folder / scratch).parent.mkdir(parents=True, exist_ok=True)
        (folder / scratch).write_text("scratch")
        return build(folder)

    made = workshop.make(STAGE, {}, {}, build_with_scratch)
    manifest = workshop.manifest(made.key)
    assert manifest is not None
    assert set(manifest.files) == {"out.txt", "sub/more.txt"}
    assert workshop.store.read(f"{made.key}/{scratch}") is None


def test_a_build_that_raises_leaves_no_artifact_keeps_its_scratch_and_frees_the_lease(
    workshop: Workshop, build: Builder
) -> None:
    def broken(folder: Path) -> Mapping[str, Any]:
        (folder / "_half").write_text("half")
        raise FatalError("broken")

    def goes_on(folder: Path) -> Mapping[str, Any]:
        assert (folder / "_half").read_text() == "half"
        return build(folder)

    with pytest.raises(FatalError, match="broken"):
        workshop.make(STAGE, {}, {}, broken)
    assert list(workshop.store.list("lines")) == list(workshop.store.list("leases")) == []
    assert not workshop.make(STAGE, {}, {}, goes_on).reused


def test_a_disk_that_is_full_while_building_is_fatal_in_one_line(workshop: Workshop) -> None:
    def full(folder: Path) -> Mapping[str, Any]:
        raise OSError(28, "No space left on device")

    with pytest.raises(FatalError, match=f"{workshop.work}.*No space left"):
        workshop.make(STAGE, {}, {}, full)


def test_a_stage_killed_between_its_files_and_its_manifest_has_made_nothing(
    workshop: Workshop, build: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(key: str, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        plain = workshop.store.write
        patch.setattr(
            workshop.store,
            "write",
            lambda key, data: (killed if key.endswith("manifest.json") else plain)(key, data),
        )
        with pytest.raises(KeyboardInterrupt):
            workshop.make(STAGE, {}, {}, build)
    assert not workshop.make(STAGE, {}, {}, build).reused


def test_files_made_elsewhere_are_adopted_by_their_content(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("same")
    (tmp_path / "two").write_text("same")
    adopted = workshop.adopt(STAGE, {"file": tmp_path / "one"})
    assert workshop.adopt(STAGE, {"file": tmp_path / "two"}).key == adopted.key
    (tmp_path / "two").write_text("other")
    assert workshop.adopt(STAGE, {"file": tmp_path / "two"}).key != adopted.key
    with pytest.raises(FatalError, match="three: no such file"):
        workshop.adopt(STAGE, {"file": tmp_path / "three"})


@pytest.mark.contended
def test_threads_of_one_process_build_once(workshop: Workshop) -> None:
    build = Builder()

    def slow(folder: Path) -> Mapping[str, Any]:
        time.sleep(0.3)
        return build(folder)

    made: list[Artifact] = []
    threads = [threading.Thread(target=lambda: made.append(workshop.make(STAGE, {}, {}, slow))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert build.built == 1
    assert sorted(artifact.reused for artifact in made) == [False, True, True, True]


RUN = """
    import sys, time
    from pathlib import Path
    from nothing_gpt.artifacts import Stage, Workshop
    from nothing_gpt.store import open_store

    def build(folder):
        print("building", flush=True)
        time.sleep(float(sys.argv[3]))
        (folder / "out.txt").write_text("text")
        return {}

    made = Workshop(open_store(sys.argv[1]), Path(sys.argv[2])).make(Stage("lines", 1), {}, {}, build)
    print("reused" if made.reused else "made", flush=True)
"""


@pytest.mark.contended
def test_of_two_processes_one_builds_and_the_other_waits_and_takes_over(
    store: Store, child: Start, tmp_path: Path
) -> None:
    runs = [child(RUN, store.uri, tmp_path / "work", 1) for _ in range(2)]
    said = sorted(run.communicate()[0].split() for run in runs)
    assert said == [["building", "made"], ["reused"]]


def test_the_lease_of_a_killed_process_is_taken_at_once(workshop: Workshop, child: Start, build: Builder) -> None:
    holder = child(RUN, workshop.store.uri, workshop.work, 60)
    assert holder.stdout is not None
    holder.stdout.readline()
    os.kill(holder.pid, signal.SIGKILL)  # not waited for: a zombie, as under a container's process 1
    started = time.monotonic()
    assert not workshop.make(STAGE, {}, {}, build).reused
    assert time.monotonic() - started < 2


ELSEWHERE = f"""
    import socket
    from nothing_gpt import artifacts

    socket.gethostname = lambda: "elsewhere"
    artifacts.LEASE_SECONDS = 1.0
{RUN}"""


def test_the_lease_of_a_process_killed_on_another_machine_is_taken_when_it_runs_out(
    workshop: Workshop, child: Start, build: Builder
) -> None:
    """As a pod's that lost its node: the next one waits for the rest of the lease, and for no more."""
    holder = child(ELSEWHERE, workshop.store.uri, workshop.work, 60)
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.kill()
    holder.wait()
    killed = time.time()
    (held,) = workshop.store.list("leases")
    expires = json.loads(workshop.store.read(held) or b"")["expires"]
    assert expires <= killed + 1
    assert not workshop.make(STAGE, {}, {}, build).reused
    assert time.time() > expires


def claim(host: str, expires: float, pid: int = 1, started: float = 0.0) -> bytes:
    return json.dumps({"host": host, "pid": pid, "started": started, "expires": expires}).encode()


def acquired(store: Store, seconds: float) -> bool:
    """Whether the lease is had within so many seconds."""
    had, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with lease(store, "leases/x"):
            had.set()
            leave.wait(20)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    try:
        return had.wait(seconds)
    finally:
        leave.set()
        store.delete("leases/x")
        thread.join()


def test_an_expired_lease_of_another_machine_is_taken(store: Store) -> None:
    store.write("leases/x", claim("elsewhere", time.time() - 1))
    assert acquired(store, 5)


def test_a_lease_of_another_machine_that_has_not_expired_is_respected(store: Store) -> None:
    store.write("leases/x", claim("elsewhere", time.time() + 60))
    assert not acquired(store, 0.5)


def test_a_lease_is_taken_where_its_process_id_is_another_process_now(store: Store) -> None:
    store.write("leases/x", claim(socket.gethostname(), time.time() + 60))
    assert acquired(store, 5)


def test_a_lease_is_respected_though_the_clock_was_set_since_its_holder_started(store: Store) -> None:
    me = psutil.Process()
    store.write("leases/x", claim(socket.gethostname(), time.time() + 60, me.pid, me.create_time() + 2))
    assert not acquired(store, 0.5)


@pytest.mark.parametrize("damaged", [b"", b"\0\0", b"{}", b"[1]", claim("elsewhere", time.time() + 60)[:-9]])
def test_a_damaged_lease_is_free(store: Store, damaged: bytes) -> None:
    store.write("leases/x", damaged)
    assert live_leases(store) == []
    assert acquired(store, 5)


def test_the_live_leases_are_those_that_somebody_holds(store: Store) -> None:
    store.write("leases/expired", claim("elsewhere", time.time() - 1))
    store.write("leases/theirs", claim("elsewhere", time.time() + 60))
    with lease(store, "leases/mine"):
        assert live_leases(store) == ["leases/mine", "leases/theirs"]


@pytest.mark.contended
def test_a_lease_that_another_machine_has_taken_over_is_left_to_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "LEASE_SECONDS", 0.2)
    theirs = claim("elsewhere", time.time() + 60)
    with lease(store, "leases/x"):
        store.write("leases/x", theirs)
        time.sleep(0.2)
        assert store.read("leases/x") == theirs
    assert store.read("leases/x") == theirs


def test_a_lease_is_renewed_while_it_is_held(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "LEASE_SECONDS", 0.2)
    with lease(store, "leases/x"):
        first = json.loads(store.read("leases/x") or b"")["expires"]
        time.sleep(0.3)
        assert json.loads(store.read("leases/x") or b"")["expires"] > first
    assert store.read("leases/x") is None


def test_an_artifact_outlives_its_workshop(workshop: Workshop, build: Builder, tmp_path: Path) -> None:
    workshop.make(STAGE, {}, {}, build)
    assert Workshop(open_store(workshop.store.uri), tmp_path / "elsewhere").make(STAGE, {}, {}, build).reused
