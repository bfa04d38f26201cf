"""Promotion and rollback on a vLLM that sees none of our paths: a fetcher brings adapters into its own folder."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nothing_gpt.adapters import CONFIG, WEIGHTS
from nothing_gpt.artifacts import Stage, Workshop
from nothing_gpt.serve import fetch
from nothing_gpt.serve.switch import Server
from tests.fake_vllm import save_adapter, save_base, serving_adapters
from tests.serve.stand import NAME, Stand


@dataclass
class Elsewhere(Stand):
    """A stand whose server has a folder of its own."""

    folder: Path

    @property
    def server(self) -> Server:
        return Server(self.vllm.url, NAME, self.base, adapters=str(self.folder))


@pytest.fixture
def elsewhere(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """The server runs with the starting adapter, which it was brought before; a fetcher follows the store."""
    monkeypatch.setattr(fetch, "EVERY_S", 0.01)
    made = save_adapter(tmp_path / "made", 0.25)
    start = workshop.folder(workshop.adopt(Stage("sft", 1), {name: made / name for name in (CONFIG, WEIGHTS)}))
    folder, stop = tmp_path / "adapters", threading.Event()
    fetch.fetch_current(workshop.store, folder)
    fetcher = threading.Thread(target=fetch.follow, args=(workshop.store, folder, stop))
    with serving_adapters() as vllm:
        vllm.serve(NAME, (folder / "current").resolve())
        fetcher.start()
        yield Elsewhere(vllm, workshop, start, save_base(tmp_path / "base"), folder)
        stop.set()
        fetcher.join()


@pytest.mark.every_store
def test_a_candidate_is_promoted_and_taken_back_and_a_restart_would_load_it(elsewhere: Elsewhere) -> None:
    start = elsewhere.vllm.served()[NAME]
    assert start == elsewhere.server.path(elsewhere.start)
    candidate = elsewhere.candidate()
    elsewhere.promote(candidate)
    path = elsewhere.folder / candidate.artifact
    assert elsewhere.serves(path)
    assert fetch.fetch_current(elsewhere.store, elsewhere.folder) == candidate.artifact
    elsewhere.roll_back()
    assert elsewhere.serves(Path(start))
