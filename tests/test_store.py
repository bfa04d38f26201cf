"""The store: objects are whole or not there, a swap has one winner, and a disk's trouble is one clear line."""

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nothing_gpt.errors import FatalError
from nothing_gpt.store import FORMAT, FolderStore, Store, open_store
from tests.conftest import Start

pytestmark = pytest.mark.every_store

AS_ROOT = os.geteuid() == 0


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_is_written_is_read(store: Store) -> None:
    store.write("a/b/c.txt", b"\x00\xff")
    assert store.read("a/b/c.txt") == b"\x00\xff"
    assert store.fetch("a/b/c.txt").read_bytes() == b"\x00\xff"


def test_an_object_that_is_not_there_is_none(store: Store) -> None:
    assert store.read("a/b") is None
    with pytest.raises(FileNotFoundError):
        store.fetch("a/b")
    store.delete("a/b")


def test_an_uploaded_file_is_read(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 9_000_000)
    store.upload(tmp_path / "file", "big")
    assert store.read("big") == b"x" * 9_000_000


def test_a_copied_object_has_the_same_bytes_and_stays_when_the_first_is_gone(store: Store) -> None:
    store.write("a/key", b"bytes")
    store.copy("a/key", "b/c/key")
    store.delete("a/key")
    assert (store.read("b/c/key"), store.size("b/c/key"), store.size("a/key")) == (b"bytes", 5, None)
    with pytest.raises(FileNotFoundError):
        store.copy("a/key", "b/d")


def test_keys_are_listed_sorted_below_a_folder(store: Store) -> None:
    for key in ("a/z", "a/b/c", "a/b.txt", "ab", "a/b-c/d"):
        store.write(key, b"")
    assert list(store.list("a")) == ["a/b-c/d", "a/b.txt", "a/b/c", "a/z"]
    assert list(store.list("nowhere")) == []


def test_a_reader_sees_the_old_object_or_the_new_one_and_never_a_mixture(store: Store) -> None:
    versions = [bytes([letter]) * 200_000 for letter in b"abc"]
    store.write("key", versions[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for data in versions:
                store.write("key", data)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [store.read("key") for _ in range(300)]
    finally:
        stop.set()
        writer.join()
    assert set(seen) <= set(versions)


@pytest.mark.disk
def test_a_writer_killed_midway_leaves_the_old_object(store: Store, child: Start) -> None:
    store.write("key", b"old")
    process = child(
        """
        import os, sys, signal
        from nothing_gpt.store import FolderStore
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        FolderStore(__import__("pathlib").Path(sys.argv[1])).write("key", b"new")
    """,
        store.uri,
    )
    assert process.wait() == -9
    assert store.read("key") == b"old"
    assert list(store.list()) == ["FORMAT", "key"]


@pytest.mark.contended
def test_of_eight_threads_that_swap_exactly_one_wins_each_round(store: Store) -> None:
    for round_number in range(10):
        expected = store.read("key")
        start, wins = threading.Barrier(8), []

        def swap(
            name: bytes, start: threading.Barrier = start, expected: bytes | None = expected, wins: list[bytes] = wins
        ) -> None:
            start.wait()
            if store.swap("key", name, expected):
                wins.append(name)

        threads = [threading.Thread(target=swap, args=(b"%d-%d" % (round_number, i),)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wins == [store.read("key")]


def test_a_swap_that_expects_nothing_does_not_replace_something(store: Store) -> None:
    assert store.swap("key", b"first", None)
    assert not store.swap("key", b"second", None)
    assert not store.swap("key", b"second", b"other")
    assert store.read("key") == b"first"


def test_a_store_is_opened_again(store: Store) -> None:
    store.write("key", b"1")
    assert open_store(store.uri).read("key") == b"1"


def test_a_store_of_a_newer_version_is_refused_in_one_line(store: Store) -> None:
    store.write("FORMAT", str(FORMAT + 1).encode())
    with pytest.raises(FatalError, match=rf"newer version.*format {FORMAT + 1}.*upgrade") as error:
        open_store(store.uri)
    assert "\n" not in str(error.value)


def test_a_store_whose_format_cannot_be_read_is_refused(store: Store) -> None:
    store.write("FORMAT", b"")
    with pytest.raises(FatalError, match="FORMAT is damaged"):
        open_store(store.uri)


@pytest.mark.parametrize("address", ["s3://bucket/prefix", "http://bucket", "gs://", "gs:///prefix", "gs://A_B/c"])
def test_an_address_of_no_known_kind_is_refused_with_what_to_do(address: str) -> None:
    with pytest.raises(FatalError, match=f"^{address}: .*give .*gs://BUCKET/PREFIX"):
        open_store(address)


def test_a_file_in_the_place_of_the_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FatalError, match=str(tmp_path / "file")):
        open_store(str(tmp_path / "file"))


@pytest.mark.disk
@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_full_disk_is_fatal_names_the_path_and_leaves_the_old_object(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store.write("a/key", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(FatalError, match=rf"{store.uri}/a/key: .*No space left") as error:
        store.write("a/key", b"new")
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert store.read("a/key") == b"old"
    assert files_in(store.root / "a") == ["key"]


@pytest.mark.disk
def test_an_error_that_is_not_the_disks_is_passed_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise OSError(errno.EINTR, "interrupted")

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(InterruptedError):
        store.write("key", b"")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        not AS_ROOT
        or mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_really_full_keeps_what_was_there_and_nothing_half_written(small_disk: Path) -> None:
    store = open_store(str(small_disk))
    store.write("key", b"old")
    with pytest.raises(FatalError, match=f"{small_disk}/key"):
        store.write("key", b"x" * 100_000)
    assert store.read("key") == b"old"
    assert files_in(small_disk) == ["FORMAT", "key"]
    store.write("other", b"x" * 10_000)


@pytest.mark.skipif(not AS_ROOT, reason="only root may mount")
def test_a_read_only_disk_is_fatal_for_every_way_to_write(small_disk: Path, tmp_path: Path) -> None:
    store = open_store(str(small_disk))
    store.write("key", b"old")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    (tmp_path / "file").write_text("new")
    for write in (
        lambda: store.write("key", b"new"),
        lambda: store.swap("key", b"new", b"old"),
        lambda: store.upload(tmp_path / "file", "key"),
        lambda: store.delete("key"),
        lambda: store.write("folder/key", b"new"),
    ):
        with pytest.raises(FatalError, match=f"{small_disk}/.*Read-only"):
            write()
    assert store.read("key") == b"old"


def test_a_folder_without_permission_is_fatal_and_names_the_path(tmp_path: Path, child: Start) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    folder.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents[:-2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    process = child(
        """
        import os, sys
        from nothing_gpt.errors import exits_cleanly
        from nothing_gpt.store import open_store
        if os.geteuid() == 0:
            os.setuid(65534)
        exits_cleanly(lambda: open_store(sys.argv[1]))()
    """,
        folder,
    )
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.startswith(f"error: {folder}/FORMAT: cannot be used (Permission denied)")
    assert len(err.splitlines()) == 1
