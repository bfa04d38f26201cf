"""The journal when writers are killed: no row that was written is lost, none is torn, none is there twice, and of two
writers neither harms the other."""

import os
import random
import signal
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from nothing_gpt import journal as module
from nothing_gpt.journal import Journal
from nothing_gpt.store import FolderStore, Store, open_store
from tests.conftest import Start
from tests.test_journal import rows_in

pytestmark = pytest.mark.every_store

WRITER = """
    import sys
    from nothing_gpt import journal as module
    from nothing_gpt.store import open_store
    module.FLUSH_SECONDS = 0.002
    store, number = open_store(sys.argv[1]), 0
    while True:
        with module.Journal(store, "p") as journal:
            for number in range(number, number + 200):
                if f"key {number}" not in journal:
                    journal.add(f"key {number}", {"text": "x\\n" * (number % 50), "number": number})
        print(number, flush=True)  # all up to this one are written
"""


def test_a_writer_killed_again_and_again_loses_no_written_row_tears_none_and_repeats_none(
    store: Store, child: Start
) -> None:
    chance = random.Random(7)
    for _ in range(6):
        process = child(WRITER, store.uri)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        said = [int(line) for line in process.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
        rows_in(store)  # every line parses
        journal = Journal(store, "p")
        numbers = range(max(said, default=199))
        assert [journal[f"key {number}"]["number"] for number in numbers] == list(numbers)
    with Journal(store, "p") as journal:
        pass
    assert len(rows_in(store)) == len(journal)


def test_of_two_runs_that_want_the_same_rows_the_second_waits_and_finds_them(store: Store) -> None:
    second, asked = threading.Event(), list[str]()

    def ask() -> None:
        with Journal(store, "p") as journal:
            second.set()
            with journal.alone():
                if "a" not in journal:
                    asked.append("second")

    with Journal(store, "p") as journal, journal.alone():
        thread = threading.Thread(target=ask)
        thread.start()
        assert second.wait(60)
        assert "a" not in journal
        asked.append("first")
        journal.add("a", 1)
    thread.join(60)
    assert asked == ["first"]


KEYS = st.sampled_from("abcd")
WRITERS = st.integers(0, 1)


class Journals(RuleBasedStateMachine):
    """Two writers of one partition, either of which may be killed at any moment, and what they have written."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.store = open_store(str(self.folder / os.urandom(8).hex()))
        self.writers = [Journal(self.store, "p"), Journal(self.store, "p")]
        self.added = [dict[str, int](), dict[str, int]()]
        self.written = defaultdict[str, set[int]](set)
        self.rows = 0

    @rule(who=WRITERS, key=KEYS)
    def add(self, who: int, key: str) -> None:
        self.rows += 1
        if key not in self.writers[who]:
            self.added[who][key] = self.rows
        self.writers[who].add(key, self.rows)

    @rule(who=WRITERS)
    def flush(self, who: int) -> None:
        self.writers[who]._flush()
        for key, row in self.added[who].items():
            self.written[key].add(row)
        self.added[who] = {}

    @rule(who=WRITERS)
    def kill(self, who: int) -> None:
        self.writers[who] = Journal(self.store, "p")
        self.added[who] = {}

    @rule(who=WRITERS)
    def merge(self, who: int) -> None:
        self.writers[who]._merge()

    @rule(who=WRITERS, deleted=st.integers(0, 2))
    def merge_and_be_killed_before_all_old_segments_are_gone(self, who: int, deleted: int) -> None:
        left, delete = [deleted], FolderStore.delete

        def delete_some(store: FolderStore, key: str) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            delete(store, key)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FolderStore, "delete", delete_some)
            try:
                self.writers[who]._merge()
            except KeyboardInterrupt:
                self.kill(who)

    @precondition(lambda self: self.rows < 50)
    @rule(torn=st.binary(max_size=30))
    def a_foreign_file_appears(self, torn: bytes) -> None:
        self.rows += 1
        self.store.write(f"journal/p/{self.rows:03d}-foreign.jsonl", torn.replace(b"\n", b" "))

    @invariant()
    def whoever_opens_it_finds_each_written_row_once(self) -> None:
        journal = Journal(self.store, "p")
        assert len(journal) == len(self.written)
        for key, rows in self.written.items():
            assert journal[key] in rows
        journal._close_segment()

    @invariant()
    def each_writer_finds_what_it_added(self) -> None:
        for journal, added in zip(self.writers, self.added, strict=True):
            assert {key: journal[key] for key in added} == added
            others = [key for key in self.written if key in journal and key not in added]
            assert all(journal.get(key) in self.written[key] for key in others)


def test_whatever_writers_do_and_whenever_they_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(module, "MERGED_BYTES", 200)
    monkeypatch.setattr(Journals, "folder", tmp_path, raising=False)
    run_state_machine_as_test(Journals, settings=settings(max_examples=40, stateful_step_count=30))
