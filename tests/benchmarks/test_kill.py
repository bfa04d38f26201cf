"""What counts as damage after a kill. That there is none is shown by `python -m benchmarks.kill`."""

import json
from pathlib import Path

from benchmarks.kill import Damage, compared, journal, repetitions


def test_repeated_calls_are_excused_only_in_flight_or_in_the_last_second() -> None:
    killed = 10.0
    calls = [
        (["kept"], 1.0, 8.5),
        (["fresh"], 8.0, 9.5),
        (["in flight"], 9.0, None),
        (["answered to nobody"], 9.0, 10.2),
        (["fresh"], 11.0, 12.0),
        (["in flight"], 11.0, 12.0),
        (["answered to nobody"], 11.0, 12.0),
        (["new"], 11.0, 12.0),
    ]
    assert repetitions(calls, killed) == (3, 0)
    assert repetitions([*calls, (["kept"], 12.0, 13.0)], killed) == (4, 1)


def test_lost_duplicated_and_different_rows_of_finished_files_are_told_apart() -> None:
    whole = {"rows": b"a\nb\nc\n"}
    assert compared(whole, {"rows": b"a\nb\nc\n"}) == Damage()
    assert compared(whole, {"rows": b"b\na\nc\n"}) == Damage(different=1)
    assert compared(whole, {"rows": b"a\nb\n"}) == Damage(lost=1, different=1)
    assert compared(whole, {"rows": b"a\nb\nb\nc\n"}) == Damage(duplicated=1, different=1)
    assert compared(whole, {}) == Damage(lost=3, different=1)


def test_a_torn_line_of_the_journal_is_seen_and_a_copy_is_one_row(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "journal" / "sampling" / "p"
    folder.mkdir(parents=True)
    line = json.dumps({"key": "k", "row": 1}) + "\n"
    (folder / "1.jsonl").write_text(line)
    (folder / "merged.jsonl").write_text(line + json.dumps({"key": "k", "row": 2}) + "\n" + line[:-3])
    (folder / ".temporary.jsonl").write_text(line[:4])
    rows, torn = journal(tmp_path)
    assert {key: len(versions) for key, versions in rows.items()} == {"p/k": 2}
    assert torn == 1
