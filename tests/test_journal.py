"""The journal: whatever kills the writer, no row that was flushed is lost, none is torn and none is there twice."""

import errno
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nothing_gpt import journal as module
from nothing_gpt.errors import FatalError
from nothing_gpt.journal import Journal
from nothing_gpt.store import FolderStore, Store, open_store
from tests.conftest import Start

WRITER = """
    import sys, time
    from nothing_gpt.journal import Journal
    from nothing_gpt.store import open_store
    with Journal(open_store(sys.argv[1]), "p") as journal:
        for number in range(int(sys.argv[2]), 10**9):
            key = f"key {number}"
            if key not in journal:
                journal.add(key, {"text": "x\\n" * (number % 50), "at": time.time()})
            print(number, time.time(), flush=True)
            time.sleep(0.0005)
"""


def rows_in(store: Store) -> list[dict[str, Any]]:
    """Every line of every segment: a torn one would not parse."""
    return [
        json.loads(line) for segment in store.list("journal") for line in (store.read(segment) or b"").split(b"\n")[:-1]
    ]


def written(store: Store, rows: dict[str, Any]) -> None:
    with Journal(store, "p") as journal:
        for key, row in rows.items():
            journal.add(key, row)


def test_rows_are_there_at_once_and_after_opening_again(store: Store) -> None:
    with Journal(store, "p") as journal:
        journal.add("a", {"text": "one"})
        assert "a" in journal
        assert journal["a"] == {"text": "one"}
    again = Journal(store, "p")
    assert (len(again), again["a"], "b" in again) == (1, {"text": "one"}, False)


def test_a_row_is_on_the_disk_within_a_second(store: Store) -> None:
    with Journal(store, "p") as journal:
        journal.add("a", 1)
        time.sleep(0.9)
        assert Journal(store, "p")["a"] == 1


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


def test_a_writer_killed_again_and_again_loses_no_flushed_row_tears_none_and_repeats_none(
    store: Store, child: Start
) -> None:
    chance = random.Random(7)
    first, earlier = 0, Counter[str]()
    for _ in range(4):
        process = child(WRITER, store.uri, first)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0.1, 1.6))
        killed = time.time()
        os.kill(process.pid, signal.SIGKILL)
        said = [line.split() for line in process.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
        keys = Counter(row["key"] for row in rows_in(store))
        old = {f"key {number}" for number, at in said if float(at) < killed - 1}
        assert not old - set(keys)
        assert max(keys.values(), default=1) == 1
        assert not earlier - keys
        first, earlier = max(0, int(said[-1][0]) - 2000), keys
    assert len(earlier) > 500


def test_one_segment_takes_the_place_of_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    with Journal(store, "p") as journal:
        for number in range(20):
            journal.add(str(number), number)
            time.sleep(0.015)
        assert len(list(store.list("journal"))) > 3
    assert len(list(store.list("journal"))) == 1
    again = Journal(store, "p")
    assert [again[str(number)] for number in range(20)] == list(range(20))


def test_a_merge_killed_before_the_old_segments_are_gone_shows_no_row_twice(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(FolderStore, "delete", lambda self, key: None)
    with Journal(store, "p") as journal:
        for number in range(5):
            journal.add(str(number), number)
            time.sleep(0.03)
    assert len(rows_in(store)) == 10
    assert len(Journal(store, "p")) == 5


def test_a_run_goes_on_reading_when_another_merges_its_segments(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    with Journal(store, "p") as other:
        for number in range(5):
            other.add(str(number), number)
            time.sleep(0.03)
        mine = Journal(store, "p")
    assert [mine[str(number)] for number in range(5)] == list(range(5))


def test_a_run_that_opens_while_another_merges_sees_every_row(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(store, {"a": 1})
    segment = next(store.list("journal"))
    plain = FolderStore.read

    def read(self: FolderStore, key: str) -> bytes | None:
        if key == segment and plain(self, key) is not None:  # merged between the listing and the reading
            self.write("journal/p/merged.jsonl", plain(self, key) or b"")
            self.delete(key)
        return plain(self, key)

    monkeypatch.setattr(FolderStore, "read", read)
    assert Journal(store, "p")["a"] == 1


def test_many_segments_are_read_without_as_many_open_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for number in range(200):
        store.write(f"journal/p/{number:04d}.jsonl", b'{"key": "%d", "row": %d}\n' % (number, number))
    journal = Journal(store, "p")
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert sum(journal[str(number)] for number in range(200)) == sum(range(200))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


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


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_surfaces_at_a_next_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)

    def work() -> None:
        with Journal(store, "p") as journal:
            monkeypatch.setattr(os, "fsync", full_disk)
            for number in range(200):
                journal.add(str(number), number)
                time.sleep(0.01)
            pytest.fail("nobody noticed")

    with pytest.raises(FatalError, match="No space left"):
        work()


def test_a_full_disk_surfaces_at_the_end_where_no_other_row_comes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(store, "p")
    journal.__enter__()
    journal.add("a", 1)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(FatalError, match="No space left"):
        journal.__exit__()


def test_rows_that_a_full_disk_refused_are_written_once_there_is_room(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    with Journal(store, "p") as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full_disk)
            journal.add("a", 1)
            time.sleep(0.1)
        assert journal["a"] == 1
    assert Journal(store, "p")["a"] == 1


@pytest.mark.parametrize("text", ["\n", "\r\n", "\u2028\u2029\x85\x0b\x0c", "\x00", '"key": ', "é" * 3000, "k" * 5000])
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
