"""The journal: rows are there at once, outlive whatever ends the run, and cost little memory. See test_journal_kills.py
for what becomes of them when writers are killed."""

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nothing_gpt import journal as module
from nothing_gpt.errors import FatalError
from nothing_gpt.journal import FLUSH_SECONDS, Journal
from nothing_gpt.store import FolderStore, Store, open_store
from tests.conftest import Start

pytestmark = pytest.mark.every_store


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written when a test says so, not when time passes."""
    monkeypatch.setattr(module, "FLUSH_SECONDS", 1e6)


def rows_in(store: Store) -> list[dict[str, Any]]:
    """Every line of every segment: a torn one would not parse."""
    return [
        json.loads(line) for segment in store.list("journal") for line in (store.read(segment) or b"").split(b"\n")[:-1]
    ]


def written(store: Store, rows: dict[str, Any]) -> None:
    with Journal(store, "p") as journal:
        for key, row in rows.items():
            journal.add(key, row)


def segments(journal: Journal, count: int) -> None:
    """Rows "0", "1" ..., each in a segment of its own."""
    for number in range(count):
        journal.add(str(number), number)
        journal._flush()


def eventually(happened: Callable[[], bool]) -> bool:
    """Whether it happens at all; a slow machine may take its time."""
    until = time.monotonic() + 60
    while not happened() and time.monotonic() < until:
        time.sleep(0.01)
    return happened()


def test_rows_are_there_at_once_and_after_opening_again(store: Store) -> None:
    with Journal(store, "p") as journal:
        journal.add("a", {"text": "one"})
        assert "a" in journal
        assert journal["a"] == {"text": "one"}
    again = Journal(store, "p")
    assert (len(again), again["a"], "b" in again) == (1, {"text": "one"}, False)


def test_a_key_without_a_row_is_said_to_have_none(store: Store) -> None:
    journal = Journal(store, "p")
    assert journal.get("a") is None
    with pytest.raises(KeyError, match="a"):
        journal["a"]


def test_rows_are_written_regularly_at_least_once_a_second(store: Store) -> None:
    assert FLUSH_SECONDS < 1
    with Journal(store, "p") as journal:
        for key in "ab":
            journal.add(key, 1)
            assert eventually(lambda key=key: key in Journal(store, "p"))


def test_partitions_do_not_see_each_other(store: Store) -> None:
    written(store, {"a": 1})
    assert "a" not in Journal(store, "q")


def test_the_first_row_of_a_key_stays(store: Store) -> None:
    with Journal(store, "p") as journal:
        journal.add("a", "first")
        journal.add("a", "second")
    with Journal(store, "p") as journal:
        journal.add("a", "third")
        assert journal["a"] == "first"
    assert [row["row"] for row in rows_in(store)] == ["first"]


@pytest.mark.usefixtures("never")
def test_one_segment_takes_the_place_of_many_when_a_run_ends(store: Store) -> None:
    with Journal(store, "p") as journal:
        segments(journal, 20)
        assert len(list(store.list("journal"))) == 20
    assert len(list(store.list("journal"))) == 1
    again = Journal(store, "p")
    assert [again[str(number)] for number in range(20)] == list(range(20))


@pytest.mark.usefixtures("never")
def test_a_run_merges_what_a_killed_one_left(store: Store) -> None:
    segments(Journal(store, "p"), 5)
    with Journal(store, "p"):
        pass
    assert len(list(store.list("journal"))) == 1
    assert len(Journal(store, "p")) == 5


@pytest.mark.usefixtures("never")
def test_a_segment_that_is_large_already_is_not_copied_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    written(store, {"large": "x" * 1000})
    (large,) = store.list("journal")
    monkeypatch.setattr(module, "MERGED_BYTES", 1000)
    with Journal(store, "p") as journal:
        segments(journal, 5)
    assert len(list(store.list("journal"))) == 2
    assert large in store.list("journal")


@pytest.mark.disk
@pytest.mark.usefixtures("never")
def test_a_disk_too_full_to_merge_loses_nothing(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(store, "p") as journal:
        segments(journal, 5)
        monkeypatch.setattr(os, "fsync", full_disk)
    assert len(Journal(store, "p")) == 5


@pytest.mark.usefixtures("never")
def test_a_run_goes_on_reading_when_another_merges_its_segments(store: Store) -> None:
    with Journal(store, "p") as other:
        segments(other, 5)
        mine = Journal(store, "p")
    assert [mine[str(number)] for number in range(5)] == list(range(5))


@pytest.mark.disk
def test_a_run_that_opens_while_another_merges_sees_every_row(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(store, {"a": 1})
    segment = next(store.list("journal"))
    plain = FolderStore.fetch

    def fetch(self: FolderStore, key: str) -> Path:
        if key == segment and (data := self.read(key)):  # merged between the listing and the reading
            self.write("journal/p/merged.jsonl", data)
            self.delete(key)
        return plain(self, key)

    monkeypatch.setattr(FolderStore, "fetch", fetch)
    assert Journal(store, "p")["a"] == 1


@pytest.mark.disk
def test_many_segments_are_read_with_one_open_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for number in range(200):
        store.write(f"journal/p/{number:04d}.jsonl", b'{"key": "%d", "row": %d}\n' % (number, number))
    with Journal(store, "p") as journal:
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert sum(journal[str(number)] for number in range(200)) == sum(range(200))
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.disk
@pytest.mark.usefixtures("never")
def test_a_segment_is_fetched_once_unless_its_copy_is_gone(store: FolderStore, tmp_path: Path) -> None:
    class Far(FolderStore):
        def fetch(self, key: str) -> Path:
            fetched.append(key)
            copy = cache / key.replace("/", "-")
            copy.write_bytes(super().fetch(key).read_bytes())
            return copy

    fetched: list[str] = []
    (cache := tmp_path / "cache").mkdir()
    for number in range(3):
        store.write(f"journal/p/{number}.jsonl", b'{"key": "%d", "row": %d}\n' % (number, number))
    journal = Journal(Far(store.root), "p")
    assert [journal[str(number % 3)] for number in range(30)] == [0, 1, 2] * 10
    assert len(fetched) == 3
    for copy in cache.iterdir():
        copy.unlink()
    assert [journal[str(number)] for number in (0, 1, 2)] == [0, 1, 2]
    assert len(fetched) == 6


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"hello\n", b"[1]\n", b'{"key": \n', b'{"key": "b", "ro', b'{"key": "b", "row": 1', b"\xff\n"]
)
def test_a_torn_or_foreign_line_is_no_row(store: Store, line: bytes) -> None:
    store.write("journal/p/1.jsonl", b'{"key": "a", "row": 1}\n' + line)
    store.write("journal/p/2.jsonl", b'{"key": "b", "row": 2}\n')
    with Journal(store, "p") as journal:
        assert (len(journal), journal["a"], journal["b"]) == (2, 1, 2)
    assert [row["key"] for row in rows_in(store)] == ["a", "b"]


def test_a_damaged_row_is_forgotten_and_may_be_had_again(store: Store) -> None:
    store.write("journal/p/1.jsonl", b'{"key": "a", "row": \0\0\0}\n')
    with Journal(store, "p") as journal:
        assert journal.get("a") is None
        assert "a" not in journal
        journal.add("a", 2)
        assert journal["a"] == 2
    assert Journal(store, "p")["a"] == 2


def test_threads_write_together(store: Store) -> None:
    with Journal(store, "p") as journal:

        def add(thread: int) -> None:
            for number in range(500):
                journal.add(f"{(thread + number) % 500}", number)

        threads = [threading.Thread(target=add, args=(100 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(int(row["key"]) for row in rows_in(store)) == list(range(500))


def test_an_end_of_work_while_rows_are_being_written_loses_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    begun, overtaken, names, stream = threading.Event(), threading.Event(), list[str](), store.stream

    def slow(key: str, pieces: Iterable[bytes]) -> None:
        data = [*pieces]
        if key.startswith("journal/"):
            names.append(key)
            if begun.is_set():
                overtaken.set()
            begun.set()
            overtaken.wait(0.3)  # in vain, unless two write at a time
        stream(key, data)

    with Journal(store, "p") as journal:
        monkeypatch.setattr(store, "stream", slow)
        journal.add("a", 1)
        assert begun.wait(60)
        with journal.alone():
            journal.add("b", 2)
        monkeypatch.undo()
    assert len(set(names)) == len(names)
    assert sorted(row["key"] for row in rows_in(store)) == ["a", "b"]


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.disk
def test_a_full_disk_surfaces_at_a_next_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)

    def refused() -> bool:
        try:
            journal.add(str(time.monotonic_ns()), 1)
        except FatalError as error:
            return "No space left" in str(error)
        return False

    with Journal(store, "p") as journal, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        assert eventually(refused)


@pytest.mark.disk
@pytest.mark.usefixtures("never")
def test_a_full_disk_surfaces_at_the_end_where_no_other_row_comes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(store, "p")
    journal.__enter__()
    journal.add("a", 1)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(FatalError, match="No space left"):
        journal.__exit__()


@pytest.mark.disk
@pytest.mark.usefixtures("never")
def test_rows_that_a_full_disk_refused_are_written_once_there_is_room(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(store, "p") as journal:
        journal.add("a", 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full_disk)
            with pytest.raises(FatalError):
                journal._flush()
        assert journal["a"] == 1
        journal.add("b", 2)
    again = Journal(store, "p")
    assert (again["a"], again["b"]) == (1, 2)


@pytest.mark.parametrize(
    "text", ["\n", "\r\n", "\u2028\u2029\x85\x0b\x0c", "\x00", '"key": ', '", "row": ', 'a"', "\\", "é" * 3000]
)
def test_a_key_and_a_row_may_hold_any_characters(store: Store, text: str) -> None:
    written(store, {text: {"text": text}, "other": 1})
    again = Journal(store, "p")
    assert (len(again), again[text], again["other"]) == (2, {"text": text}, 1)


def test_half_a_character_is_refused_and_the_other_rows_are_kept(store: Store) -> None:
    with Journal(store, "p") as journal:
        with pytest.raises(UnicodeEncodeError):
            journal.add("a", "\ud800")
        journal.add("b", 1)
    assert len(Journal(store, "p")) == 1


MEASURE = """
    import sys
    from benchmarks.stage import peak_mib
    from nothing_gpt.journal import Journal
    from nothing_gpt.store import open_store
    store = open_store(sys.argv[1])
    store.fetch("journal/p/1.jsonl")  # what it takes to bring a segment here is not the journal's
    before = peak_mib()  # SQLite's memory is none of Python's
    journal = Journal(store, "p")
    print((peak_mib() - before) * 2**20 / len(journal))
"""


def test_a_row_costs_the_same_memory_whatever_its_size(store: Store, child: Start) -> None:
    rows = (b'{"key": "%d", "row": "%s"}\n' % (number, b"x" * 2000) for number in range(20_000))
    store.write("journal/p/1.jsonl", b"".join(rows))
    assert float(child(MEASURE, store.uri).communicate()[0]) < 120  # bytes


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=25)
@given(st.lists(st.dictionaries(texts, values, max_size=5), min_size=1, max_size=3))
def test_whatever_is_added_in_whatever_runs_is_read_back_once(
    tmp_path_factory: pytest.TempPathFactory, runs: list[dict[str, Any]]
) -> None:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    expected: dict[str, Any] = {}
    for rows in runs:
        written(store, rows)
        expected = rows | expected
    journal = Journal(store, "p")
    assert {key: journal[key] for key in expected} == expected
    assert len(journal) == len(expected) == len(rows_in(store))
