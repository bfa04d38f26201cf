"""Objects in Cloud Storage: how they are named, sent, listed and swapped, and their local copies."""

import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from nothing_gpt.cloud_store import CloudStore
from nothing_gpt.errors import FatalError
from tests.cloud_store.conftest import MIB
from tests.fake_gcs import FakeGCS

pytestmark = pytest.mark.gcs


def test_an_object_is_named_by_the_prefix_and_its_key(gcs: FakeGCS) -> None:
    CloudStore("gs://bucket/a/b/").write("c/d", b"1")
    CloudStore("gs://bucket").write("e", b"2")
    assert sorted(gcs.objects) == ["a/b/c/d", "e"]


@pytest.mark.parametrize(
    "uri",
    ["gs://", "gs:///x", "gs://BUCKET/PREFIX", "gs://data-Bucket/x", "gs://bucket?x", "gs://bucket/a//b", "gs://bucket//a",
     "gs://bucket/../a", "gs://bucket/a/.."],
)  # fmt: skip
def test_an_address_that_would_mean_another_bucket_or_leave_the_cache_is_refused(gcs: FakeGCS, uri: str) -> None:
    with pytest.raises(FatalError, match="no address of a bucket; give gs://BUCKET/PREFIX"):
        CloudStore(uri)


def test_stores_of_one_bucket_do_not_see_each_other(gcs: FakeGCS) -> None:
    one, other = CloudStore("gs://bucket/a"), CloudStore("gs://bucket/ab")
    one.write("key", b"1")
    other.write("other", b"2")
    assert (list(one.list()), list(other.list()), other.read("key")) == (["key"], ["other"], None)


def test_a_folder_made_in_the_console_is_no_object(gcs: FakeGCS, bucket: CloudStore) -> None:
    gcs.put("prefix/a/", b"")
    gcs.put("prefix/a/b", b"")
    assert list(bucket.list()) == list(bucket.list("a")) == ["a/b"]


def test_a_small_object_is_one_request_and_a_large_one_a_resumable_upload(
    gcs: FakeGCS, bucket: CloudStore, big: Path
) -> None:
    bucket.write("small", b"1")
    bucket.upload(big, "big")
    assert gcs.requests == ["insert", "start", *["chunk"] * 11]
    assert gcs.content("prefix/big") == big.read_bytes()


def test_pieces_become_one_object(gcs: FakeGCS, bucket: CloudStore) -> None:
    bucket.stream("small", (b"a", b"b"))
    bucket.stream("big", itertools.repeat(b"x" * 1000, 10_000))
    assert gcs.content("prefix/small") == b"ab"
    assert gcs.content("prefix/big") == b"x" * 10_000_000


def test_pieces_that_end_in_an_error_leave_the_old_object(gcs: FakeGCS, bucket: CloudStore) -> None:
    bucket.write("key", b"old")
    with pytest.raises(ZeroDivisionError):
        bucket.stream("key", (b"x" * MIB * (1 // (12 - number)) for number in range(20)))
    assert gcs.content("prefix/key") == b"old"


def test_a_large_file_is_never_in_memory(gcs: FakeGCS, bucket: CloudStore, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(96 * MIB)
    tracemalloc.start()
    try:
        bucket.upload(tmp_path / "large", "key")
        copy = bucket.fetch("key")
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB  # of our server, too
    finally:
        tracemalloc.stop()
    assert copy.stat().st_size == 96 * MIB


def test_a_listing_of_twenty_thousand_objects_is_whole_and_sorted(gcs: FakeGCS, bucket: CloudStore) -> None:
    names = [f"a/{number:05d}" for number in range(20_000)]
    for name in reversed([*names, "b"]):
        gcs.put(f"prefix/{name}", b"")
    assert list(bucket.list("a")) == names
    assert gcs.requests.count("list") == 20


def test_an_object_is_brought_once_as_long_as_it_is_the_same(gcs: FakeGCS, bucket: CloudStore) -> None:
    bucket.write("a/key", b"1")
    path = bucket.fetch("a/key")
    assert (path, path.read_bytes()) == (bucket.fetch("a/key"), b"1")
    assert CloudStore("gs://bucket/prefix").fetch("a/key") == path
    assert gcs.requests.count("download") == 1


def test_a_copy_of_an_object_that_was_replaced_is_brought_anew(gcs: FakeGCS, bucket: CloudStore) -> None:
    bucket.write("key", b"old")
    with bucket.fetch("key").open("rb") as reader:
        gcs.put("prefix/key", b"new")
        assert bucket.fetch("key").read_bytes() == b"new"
        assert reader.read() == b"old"


@pytest.mark.parametrize("harm", [b"", b"tex!", b"text and more", None])
def test_a_damaged_copy_is_brought_anew(bucket: CloudStore, harm: bytes | None) -> None:
    bucket.write("key", b"text")
    if harm is None:
        bucket.fetch("key").unlink()
    else:
        bucket.fetch("key").write_bytes(harm)
    assert bucket.fetch("key").read_bytes() == b"text"


def test_an_object_deleted_behind_our_back_has_no_copy(gcs: FakeGCS, bucket: CloudStore) -> None:
    bucket.write("key", b"1")
    path = bucket.fetch("key")
    del gcs.objects["prefix/key"]
    with pytest.raises(FileNotFoundError):
        bucket.fetch("key")
    assert not path.exists()
    assert bucket.read("key") is None
    bucket.delete("key")


def test_an_object_deleted_while_it_is_brought_is_not_there(gcs: FakeGCS, bucket: CloudStore, tmp_path: Path) -> None:
    bucket.write("key", b"1")
    gcs.faults["download"] = [gcs.objects.clear]
    with pytest.raises(FileNotFoundError):
        bucket.fetch("key")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_an_object_replaced_while_it_is_brought_is_the_new_one_and_no_mixture(
    gcs: FakeGCS, bucket: CloudStore, big: Path
) -> None:
    bucket.upload(big, "key")
    gcs.faults["download"] = [None, lambda: gcs.put("prefix/key", b"new")]
    assert bucket.fetch("key").read_bytes() == b"new"


def test_a_swap_is_decided_by_the_server(gcs: FakeGCS, bucket: CloudStore) -> None:
    bucket.write("key", b"old")
    gcs.faults["insert"] = [lambda: gcs.put("prefix/key", b"theirs")]
    assert not bucket.swap("key", b"mine", b"old")
    assert gcs.content("prefix/key") == b"theirs"


def test_a_swap_does_not_mistake_the_same_bytes_of_another_for_its_own(gcs: FakeGCS, bucket: CloudStore) -> None:
    gcs.faults["insert"] = [lambda: gcs.put("prefix/key", b"same")]
    assert not bucket.swap("key", b"same", None)


@pytest.mark.parametrize("faults", [["lost"], [503, "lost", 503], ["cut"]])
def test_a_swap_whose_answer_is_lost_has_won_all_the_same(
    gcs: FakeGCS, bucket: CloudStore, faults: list[str | int]
) -> None:
    gcs.faults["insert"] = [*faults]
    assert bucket.swap("key", b"mine", None)
    assert gcs.content("prefix/key") == b"mine"


@pytest.mark.parametrize("change", [lambda gcs: gcs.objects.clear(), lambda gcs: gcs.put("prefix/key", b"theirs")])
def test_a_swap_loses_where_the_object_changes_while_it_is_read(
    gcs: FakeGCS, bucket: CloudStore, change: Callable[[FakeGCS], None]
) -> None:
    bucket.write("key", b"old")
    gcs.faults["download"] = [lambda: change(gcs)]
    assert not bucket.swap("key", b"mine", b"old")
