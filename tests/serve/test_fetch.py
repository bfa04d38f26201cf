"""The folder beside a vLLM elsewhere: the current adapter, those that runs want to load, whole or not at all."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import tenacity

from nothing_gpt.adapters import adapter_digest
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.errors import FatalError
from nothing_gpt.serve import fetch, server
from nothing_gpt.serve.registry import promoted, read_registry, rolled_back, swap
from nothing_gpt.store import Store
from nothing_gpt.vllm_admin import VLLM, NoAdapterThere
from tests.conftest import Start
from tests.fake_vllm import save_adapter, serving_adapters
from tests.serve.stand import ROLLBACK


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "adapters"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "EVERY_S", 0.01)


def adopt(workshop: Workshop, stage: str, level: float) -> Artifact:
    """An adapter in the store, with a file beside it that no server needs."""
    folder = save_adapter(workshop.work.parent / f"{stage}-{level}", level)
    (folder / "steps.jsonl").write_text("{}\n")
    return workshop.adopt(Stage(stage, 1), {path.name: path for path in sorted(folder.iterdir())})


def promote(workshop: Workshop, adapter: Artifact) -> None:
    before = read_registry(workshop.store)
    after = promoted(before, name="seinfeld", artifact=adapter.key, fingerprint=adapter.fingerprint, place="gke",
                     digest=adapter_digest(workshop.folder(adapter)), metrics={}, reasons=[])  # fmt: skip
    swap(workshop.store, before, after)


def damage(store: Store, key: str) -> None:
    weights = bytearray(store.read(f"{key}/adapter_model.safetensors") or b"")
    weights[-1] ^= 1
    store.write(f"{key}/adapter_model.safetensors", bytes(weights))


def held(folder: Path) -> set[str]:
    """Keys of the adapters in the folder."""
    return {path.relative_to(folder).as_posix() for path in folder.glob("[!.]*/*") if path.parent.name != "current"}


@contextmanager
def following(store: Store, folder: Path) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=fetch.follow, args=(store, folder, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.every_store
def test_the_promoted_adapter_is_the_current_one(workshop: Workshop, folder: Path) -> None:
    adopt(workshop, "sft", 0.25)
    better = adopt(workshop, "train", 0.5)
    promote(workshop, better)
    assert fetch.fetch_current(workshop.store, folder) == better.key
    assert (folder / "current").resolve() == (folder / better.key).resolve()
    there = {path.name: path.read_bytes() for path in (folder / "current").iterdir()}
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert there == {name: workshop.file(better, name).read_bytes() for name in names}


def test_while_nothing_is_promoted_it_is_the_starting_adapter_that_came_last(workshop: Workshop, folder: Path) -> None:
    adopt(workshop, "sft", 0.25)
    last = adopt(workshop, "sft", 0.3)
    assert fetch.fetch_current(workshop.store, folder) == last.key


def test_an_empty_store_says_how_an_adapter_comes_there(workshop: Workshop, folder: Path) -> None:
    with pytest.raises(FatalError, match="nothing-gpt run --until sft"):
        fetch.fetch_current(workshop.store, folder)


@pytest.mark.every_store
def test_a_damaged_adapter_never_gets_its_name(workshop: Workshop, folder: Path) -> None:
    start = adopt(workshop, "sft", 0.25)
    damage(workshop.store, start.key)
    with pytest.raises(FatalError, match=r"adapter_model\.safetensors is not there, or damaged"):
        fetch.fetch_current(workshop.store, folder)
    assert not held(folder)
    assert not (folder / "current").exists()


def test_what_was_made_again_under_the_key_of_a_promoted_adapter_does_not_become_current(
    workshop: Workshop, folder: Path
) -> None:
    better, other = adopt(workshop, "train", 0.5), adopt(workshop, "train", 0.4)
    promote(workshop, better)
    for name in ("adapter_model.safetensors", "manifest.json"):
        workshop.store.copy(f"{other.key}/{name}", f"{better.key}/{name}")
    with pytest.raises(FatalError, match="not the files that were promoted as version 1"):
        fetch.fetch_current(workshop.store, folder)
    assert not (folder / "current").exists()


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc", "train/0123", "train/0123456789abcdef/.."])
def test_what_is_no_key_reaches_no_path(workshop: Workshop, folder: Path, key: str) -> None:
    adopt(workshop, "sft", 0.25)
    fetch.want(workshop.store, key)
    with pytest.raises(FatalError, match=r"no artifact's key"):
        fetch.mirror(workshop.store, folder)


def test_the_link_follows_promotion_and_rollback(workshop: Workshop, folder: Path) -> None:
    start, better = adopt(workshop, "sft", 0.25), adopt(workshop, "train", 0.5)
    promote(workshop, better)
    fetch.mirror(workshop.store, folder)
    assert (folder / "current").readlink() == Path(better.key)
    swap(workshop.store, read_registry(workshop.store), rolled_back(read_registry(workshop.store), ROLLBACK))
    fetch.mirror(workshop.store, folder)
    assert (folder / "current").readlink() == Path(start.key)
    assert held(folder) == {start.key}


@pytest.mark.every_store
def test_a_wanted_adapter_comes_and_goes_when_nobody_asked_for_long(
    workshop: Workshop, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, candidate = adopt(workshop, "sft", 0.25), adopt(workshop, "train", 0.5)
    fetch.want(workshop.store, candidate.key)
    fetch.mirror(workshop.store, folder)
    assert held(folder) == {start.key, candidate.key}
    later = time.time() + fetch.WANTED_S
    monkeypatch.setattr(fetch.time, "time", lambda: later)
    fetch.mirror(workshop.store, folder)
    assert held(folder) == {start.key}
    fetch.want(workshop.store, start.key)
    assert json.loads(workshop.store.read(fetch.KEY) or b"") == {start.key: later}


def test_one_that_is_gone_keeps_none_of_the_others_back(workshop: Workshop, folder: Path) -> None:
    start, candidate = adopt(workshop, "sft", 0.25), adopt(workshop, "train", 0.5)
    fetch.want(workshop.store, "train/0000000000000000")
    fetch.want(workshop.store, candidate.key)
    with pytest.raises(FatalError, match="train/0000000000000000"):
        fetch.mirror(workshop.store, folder)
    assert held(folder) == {start.key, candidate.key}


def test_a_damaged_list_of_wishes_is_written_anew(workshop: Workshop, folder: Path) -> None:
    start, candidate = adopt(workshop, "sft", 0.25), adopt(workshop, "train", 0.5)
    workshop.store.write(fetch.KEY, b"[1")
    fetch.mirror(workshop.store, folder)
    fetch.want(workshop.store, candidate.key)
    fetch.mirror(workshop.store, folder)
    assert held(folder) == {start.key, candidate.key}


@pytest.mark.usefixtures("quick")
def test_a_server_elsewhere_loads_what_it_did_not_have(workshop: Workshop, folder: Path) -> None:
    candidate = adopt(workshop, "train", 0.5)
    adopt(workshop, "sft", 0.25)
    with serving_adapters() as vllm, following(workshop.store, folder):
        path = folder / candidate.key
        assert not path.exists()
        fetch.load(workshop.store, VLLM(vllm.url), "seinfeld-1", str(path))
        assert vllm.answers_like("seinfeld-1", path)
        assert vllm.served()["seinfeld-1"] == str(path)


@pytest.mark.usefixtures("quick")
def test_loading_gives_up_where_nobody_fetches(
    workshop: Workshop, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "WAIT_S", 3)
    monkeypatch.setattr(tenacity, "time", SimpleNamespace(monotonic=count().__next__))  # a second passes at every look
    with serving_adapters() as vllm, pytest.raises(NoAdapterThere, match="no adapter there on the server"):
        fetch.load(workshop.store, VLLM(vllm.url), "one", str(folder / "train" / "0123456789abcdef"))
    assert len(vllm.loads) == 3


@pytest.mark.usefixtures("quick")
def test_a_failure_is_said_once_and_tried_again(
    workshop: Workshop, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tries: list[object] = []
    tried = threading.Event()

    class Counting:
        """A store that notes when its list of wishes is read."""

        def __getattr__(self, name: str) -> object:
            if name == "read":
                tries.append(None)
                if len(tries) > 20:
                    tried.set()
            return getattr(workshop.store, name)

    with following(Counting(), folder):  # type: ignore[arg-type]
        assert tried.wait(60)
        start = adopt(workshop, "sft", 0.25)
        wait_until(lambda: held(folder) == {start.key} and (folder / "current").exists())
    assert capsys.readouterr().err.count("trying again") == 1


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_program_fetches_once_or_follows_until_it_is_told_to_stop(
    workshop: Workshop, folder: Path, child: Start
) -> None:
    start = adopt(workshop, "sft", 0.25)
    code = "import sys; from nothing_gpt.serve import fetch; fetch.EVERY_S = 0.01; fetch.main()"
    arguments = ["--store", workshop.store.uri, "--folder", folder]
    once = child(code, *arguments)
    assert once.communicate(timeout=60)[1].splitlines() == [f"fetched {start.key}", f"current: {start.key}"]
    assert once.returncode == 0
    on = child(code, *arguments, "--follow")
    better = adopt(workshop, "train", 0.5)
    promote(workshop, better)
    wait_until(lambda: (folder / "current").readlink() == Path(better.key))
    on.send_signal(signal.SIGTERM)
    assert on.wait(60) == 0


def test_what_the_server_serves_says_which_adapter_it_is(
    workshop: Workshop, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt(workshop, "sft", 0.25)
    key = fetch.fetch_current(workshop.store, folder)
    lines: list[list[str]] = []
    monkeypatch.setenv("BASE_MODEL", "base")
    monkeypatch.setenv("ADAPTER_PATH", str(folder / "current"))
    monkeypatch.setattr(os, "execvp", lambda _, line: lines.append(line))
    monkeypatch.setattr(sys, "argv", ["server", "--port=8000"])
    with pytest.raises(SystemExit) as ended:
        server.main()
    assert ended.value.code == 0
    assert json.dumps({"name": "seinfeld", "path": str(folder / key)}) in lines[0]
    assert lines[0][-1] == "--port=8000"
