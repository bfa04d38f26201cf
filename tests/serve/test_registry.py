"""The registry of promoted adapters: which is current, what each replaced, and one winner of two writers."""

import json
from collections.abc import Callable

import pytest

from nothing_gpt.errors import FatalError
from nothing_gpt.serve.registry import KEY, Registry, Rollback, promoted, read_registry, rolled_back, swap
from nothing_gpt.store import Store

ROLLBACK = Rollback(by="anna", reason="not funny", at=2.0)


def with_one_more(registry: Registry, digest: str = "d") -> Registry:
    return promoted(
        registry,
        name="seinfeld",
        artifact=f"adapter/{digest}",
        fingerprint=digest,
        place="embedded",
        digest=digest,
        metrics={"win_rate": 0.7},
        reasons=["better"],
    )


def test_an_empty_store_has_no_versions(store: Store) -> None:
    assert read_registry(store) == Registry()
    assert read_registry(store).version(None) is None


def test_versions_are_numbered_from_one_and_the_newest_is_current() -> None:
    registry = with_one_more(with_one_more(Registry(), "a"), "b")
    assert [(version.version, version.digest) for version in registry.versions] == [(1, "a"), (2, "b")]
    assert registry.current == 2


def test_what_is_written_is_read_again(store: Store) -> None:
    registry = with_one_more(Registry())
    swap(store, Registry(), registry)
    assert read_registry(store) == registry


def test_a_version_from_before_approvals_lineage_and_rollbacks_were_recorded_is_read(store: Store) -> None:
    registry = with_one_more(Registry())
    fields = registry.versions[0].model_dump(exclude={"approval", "lineage", "taken_back"})
    store.write(KEY, json.dumps({"versions": [fields], "current": 1}).encode())
    assert read_registry(store) == registry


def test_taking_back_walks_through_what_each_version_replaced_and_keeps_the_history() -> None:
    registry = with_one_more(with_one_more(with_one_more(Registry(), "a"), "b"), "c")
    walked: list[int | None] = []
    while registry.current is not None:
        registry = rolled_back(registry, ROLLBACK)
        walked.append(registry.current)
    assert walked == [2, 1, None]
    assert len(registry.versions) == 3


def test_taking_back_does_not_return_to_what_was_taken_back() -> None:
    registry = with_one_more(rolled_back(with_one_more(with_one_more(Registry(), "a"), "b"), ROLLBACK), "c")
    assert rolled_back(registry, ROLLBACK).current == 1


def test_with_nothing_promoted_there_is_nothing_to_take_back() -> None:
    with pytest.raises(FatalError, match="no adapter is promoted"):
        rolled_back(Registry(), ROLLBACK)


def test_a_number_is_never_used_twice_even_after_taking_back() -> None:
    registry = with_one_more(rolled_back(with_one_more(Registry(), "a"), ROLLBACK), "b")
    assert [version.version for version in registry.versions] == [1, 2]
    assert (registry.current, registry.versions[1].replaces) == (2, None)


@pytest.mark.parametrize("damaged", [b"", b"{", b"\xff\xfe", b'{"versions": [{}]}', b'{"current": 1}'])
def test_a_damaged_registry_is_named_with_what_to_do(store: Store, damaged: bytes) -> None:
    store.write(KEY, damaged)
    for look in (lambda: read_registry(store), lambda: swap(store, Registry(), with_one_more(Registry()))):
        with pytest.raises(
            FatalError, match=r"/registry\.json: damaged, .*; put a good copy in its place, or delete it"
        ):
            look()


@pytest.mark.parametrize("other", [with_one_more, lambda registry: Registry()])
def test_of_two_changes_to_the_same_registry_the_second_is_refused(
    store: Store, other: Callable[[Registry], Registry]
) -> None:
    before = with_one_more(Registry(), "a")
    swap(store, Registry(), before)
    swap(store, before, with_one_more(before, "b"))
    with pytest.raises(FatalError, match=r"changed meanwhile \(version 2 now\)"):
        swap(store, before, other(before))
    assert read_registry(store).versions[-1].digest == "b"


def test_a_change_that_comes_between_reading_and_writing_is_not_overwritten(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = with_one_more(Registry(), "other").model_dump_json().encode()
    write = store.swap

    def outrun(key: str, data: bytes, expected: bytes | None) -> bool:
        store.write(KEY, other)
        return write(key, data, expected)

    monkeypatch.setattr(store, "swap", outrun)
    with pytest.raises(FatalError, match="changed meanwhile"):
        swap(store, Registry(), with_one_more(Registry(), "ours"))
    assert read_registry(store).versions[-1].digest == "other"
