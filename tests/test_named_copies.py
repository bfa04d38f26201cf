"""The guide's names in a bucket: whole copies of what is current, or none."""

import json
from pathlib import Path

import pytest

from nothing_gpt import named_copies
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.checkpoints import COMPLETE
from nothing_gpt.errors import TransientError
from nothing_gpt.named_copies import name_copy
from nothing_gpt.store import Store

pytestmark = pytest.mark.every_store


def pairs(workshop: Workshop, folder: Path, text: str) -> Artifact:
    """An artifact with the files of pairs, and one more."""
    for name in ("train.jsonl", "val.jsonl", "quality.json"):
        (folder / name).write_text(f"{text} {name}")
    return workshop.adopt(Stage("pairs", 1), {path.name: path for path in folder.glob("*.json*")})


def named(store: Store) -> dict[str, bytes | None]:
    return {key: store.read(key) for key in store.list("data") if not key.endswith(COMPLETE)}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def test_a_name_holds_the_files_of_the_artifact_and_their_checksums(workshop: Workshop, files: Path) -> None:
    made = pairs(workshop, files, "first")
    name_copy(workshop, "pairs", made.key)
    assert named(workshop.store) == {
        "data/dpo/train.jsonl": b"first train.jsonl",
        "data/dpo/val.jsonl": b"first val.jsonl",
    }
    manifest = workshop.manifest(made.key)
    assert manifest is not None
    whole = json.loads(workshop.store.read(f"data/dpo/{COMPLETE}") or b"")
    assert whole == {name: manifest.files[name].sha256 for name in ("train.jsonl", "val.jsonl")}


def test_it_follows_what_is_current_and_what_does_not_belong_there_goes(workshop: Workshop, files: Path) -> None:
    name_copy(workshop, "pairs", pairs(workshop, files, "first").key)
    workshop.store.write("data/dpo/other", b"")
    name_copy(workshop, "pairs", pairs(workshop, files, "second").key)
    assert named(workshop.store) == {
        "data/dpo/train.jsonl": b"second train.jsonl",
        "data/dpo/val.jsonl": b"second val.jsonl",
    }
    name_copy(workshop, "pairs", None)
    assert list(workshop.store.list("data")) == []


def test_a_stage_without_a_name_has_no_copy(workshop: Workshop, files: Path) -> None:
    made = pairs(workshop, files, "first")
    before = list(workshop.store.list())
    name_copy(workshop, "judge", made.key)
    assert list(workshop.store.list()) == before


def test_a_copy_that_broke_off_is_not_whole_and_the_next_one_mends_it(
    workshop: Workshop, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(named_copies, "say", said.append)
    name_copy(workshop, "pairs", pairs(workshop, files, "first").key)
    second = pairs(workshop, files, "second")
    copy = workshop.store.copy

    def breaking(source: str, target: str) -> None:
        if target.endswith("val.jsonl"):
            raise TransientError("503; run again later")
        copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(workshop.store, "copy", breaking)
        name_copy(workshop, "pairs", second.key)
    assert workshop.store.read(f"data/dpo/{COMPLETE}") is None
    assert said == ["data/dpo is not what is current: 503; run again later; the next run tries again"]
    name_copy(workshop, "pairs", second.key)
    assert named(workshop.store)["data/dpo/val.jsonl"] == b"second val.jsonl"
    assert workshop.store.read(f"data/dpo/{COMPLETE}") is not None
