"""Taking a promoted adapter back: the one it replaced serves again, on the server and in the registry, or nothing
changes.
"""

import shutil

import pytest

from nothing_gpt.adapters import WEIGHTS
from nothing_gpt.artifacts import MANIFEST
from nothing_gpt.errors import FatalError
from nothing_gpt.serve.promote import roll_back_unserved
from tests.serve.stand import ROLLBACK, Stand

pytest.importorskip("torch")


@pytest.mark.every_store
def test_the_version_that_was_replaced_serves_again(stand: Stand) -> None:
    first = stand.candidate(0.5)
    version = stand.promote(first)
    stand.promote(stand.candidate(0.75))
    assert stand.roll_back() == version
    assert stand.serves(first.folder)
    assert stand.registry.current == 1
    assert [found.taken_back for found in stand.registry.versions] == [None, ROLLBACK]


def test_taken_back_twice_the_starting_adapter_serves_again(stand: Stand) -> None:
    stand.promote(stand.candidate(0.5))
    stand.promote(stand.candidate(0.75))
    stand.roll_back()
    assert stand.roll_back() is None
    assert stand.serves(stand.start)


def test_from_the_first_version_the_starting_adapter_serves_again(stand: Stand) -> None:
    stand.promote(stand.candidate())
    assert stand.roll_back() is None
    assert stand.serves(stand.start)
    assert stand.registry.current is None


def test_with_nothing_promoted_there_is_nothing_to_take_back(stand: Stand) -> None:
    with pytest.raises(FatalError, match="nothing to take back"):
        stand.roll_back()
    assert stand.vllm.loads == []


def test_a_taking_back_that_the_server_refuses_changes_nothing(stand: Stand) -> None:
    candidate = stand.candidate()
    stand.promote(candidate)
    before = stand.registry
    stand.vllm.refuses = lambda name, path: (500, "no room for it") if path == str(stand.start) else None
    with pytest.raises(FatalError, match="no room for it"):
        stand.roll_back()
    assert stand.serves(candidate.folder)
    assert stand.registry == before


def test_a_version_whose_files_are_gone_is_not_taken_back_to(stand: Stand) -> None:
    first, second = stand.candidate(0.5), stand.candidate(0.75)
    stand.promote(first)
    stand.promote(second)
    shutil.rmtree(first.folder)
    with pytest.raises(FatalError, match=rf"version 1: its files \({first.artifact}\) are gone from the store"):
        stand.roll_back()
    assert stand.serves(second.folder)
    assert stand.registry.current == 2


def test_a_version_whose_files_were_made_again_otherwise_is_not_taken_back_to(stand: Stand) -> None:
    first, second = stand.candidate(0.5), stand.candidate(0.75)
    stand.promote(first)
    stand.promote(second)
    other = stand.candidate(0.4)  # under the same key, as where training does not repeat bit for bit
    for name in (WEIGHTS, MANIFEST):
        stand.store.copy(f"{other.artifact}/{name}", f"{first.artifact}/{name}")
    with pytest.raises(
        FatalError, match=rf"version 1: its files \({first.artifact}\) are not those that were promoted"
    ):
        stand.roll_back()
    assert stand.serves(second.folder)
    assert stand.registry.current == 2


def test_where_no_server_runs_only_the_registry_changes(stand: Stand) -> None:
    stand.promote(stand.candidate())
    stand.vllm.loads.clear()
    assert roll_back_unserved(stand.store, ROLLBACK) is None
    assert stand.registry.current is None
    assert stand.vllm.loads == []
