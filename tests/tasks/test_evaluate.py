"""Which adapter a candidate meets beside the one it started from: the one it replaces, or has replaced."""

from pathlib import Path

import pytest

from nothing_gpt.adapters import CONFIG, WEIGHTS, adapter_digest
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.bases import Base
from nothing_gpt.errors import FatalError
from nothing_gpt.serve.registry import promoted, read_registry, swap
from tasks.evaluate import _served
from tasks.place import Models
from tests.fake_vllm import save_adapter


def adapter(workshop: Workshop, folder: Path, quality: float) -> Artifact:
    files = save_adapter(folder / str(quality), quality)
    return workshop.adopt(Stage("train", 1), {name: files / name for name in (CONFIG, WEIGHTS)})


def promote(workshop: Workshop, made: Artifact) -> None:
    registry = read_registry(workshop.store)
    after = promoted(
        registry, name="seinfeld", artifact=made.key, fingerprint=made.fingerprint, place="local",
        digest=adapter_digest(workshop.folder(made)), metrics={}, reasons=[],
    )  # fmt: skip
    swap(workshop.store, registry, after)


@pytest.fixture
def adapters(workshop: Workshop, tmp_path: Path) -> list[Artifact]:
    return [adapter(workshop, tmp_path, quality) for quality in (0.1, 0.2, 0.3)]


def test_a_candidate_meets_the_version_it_replaces_before_and_after_its_promotion(
    workshop: Workshop, adapters: list[Artifact]
) -> None:
    start, first, second = adapters
    models = Models(Base("base", "base"), start)

    def met(candidate: Artifact) -> str | None:
        served = _served(workshop, models, candidate, read_registry(workshop.store))
        return served.key if served else None

    assert met(first) is None
    promote(workshop, first)
    assert met(first) is None
    assert met(second) == first.key
    promote(workshop, second)
    assert met(second) == first.key
    assert met(first) == second.key


def test_a_starting_adapter_that_was_promoted_is_met_once(workshop: Workshop, adapters: list[Artifact]) -> None:
    start, candidate, _ = adapters
    promote(workshop, start)
    registry = read_registry(workshop.store)
    assert _served(workshop, Models(Base("base", "base"), start), candidate, registry) is None


def test_where_the_served_adapter_s_files_are_gone_nothing_takes_its_place_uncompared(
    workshop: Workshop, adapters: list[Artifact]
) -> None:
    start, first, second = adapters
    promote(workshop, first)
    workshop.store.delete(f"{first.key}/manifest.json")
    registry, models = read_registry(workshop.store), Models(Base("base", "base"), start)
    with pytest.raises(FatalError, match=r"version 1: its files .* are gone"):
        _served(workshop, models, second, registry)
    promote(workshop, second)
    assert _served(workshop, models, second, read_registry(workshop.store)) is None  # the one it replaced is gone
