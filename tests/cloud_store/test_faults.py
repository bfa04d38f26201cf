"""The store in Cloud Storage on a server that cuts connections, answers 503, damages bytes and refuses."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.oauth2.credentials import Credentials

from nothing_gpt import cloud_store
from nothing_gpt.cloud_store import CloudStore
from nothing_gpt.errors import FatalError, NothingGPTError, TransientError
from nothing_gpt.store import open_store
from tests.conftest import Start
from tests.fake_gcs import FakeGCS

pytestmark = pytest.mark.gcs


OPERATIONS: dict[str, Callable[[CloudStore, Path], object]] = {
    "insert": lambda store, file: store.write("other", b"1"),
    "start": lambda store, file: store.upload(file, "other"),
    "chunk": lambda store, file: store.upload(file, "other"),
    "download": lambda store, file: store.read("key"),
    "get": lambda store, file: store.fetch("key"),
    "list": lambda store, file: list(store.list()),
    "delete": lambda store, file: store.delete("key"),
}


def refused(kind: type[NothingGPTError], act: Callable[[], object]) -> str:
    with pytest.raises(kind) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_burst_of_503_passes(gcs: FakeGCS, bucket: CloudStore, big: Path, operation: str) -> None:
    bucket.write("key", b"1")
    gcs.faults[operation] = [503, 503, 429, 500, 503]
    OPERATIONS[operation](bucket, big)
    assert gcs.faults[operation] == []
    written = {"insert": b"1", "start": big.read_bytes(), "chunk": big.read_bytes()}
    assert gcs.content("prefix/other") == written.get(operation)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_does_not_pass_within_the_deadline_is_a_transient_error_in_one_line(
    gcs: FakeGCS, bucket: CloudStore, big: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write("key", b"1")
    monkeypatch.setattr(cloud_store, "RETRY", cloud_store.RETRY.with_timeout(0.1))
    gcs.faults[operation] = [503] * 1000
    said = refused(TransientError, lambda: OPERATIONS[operation](bucket, big))
    assert re.match(r"gs://bucket/prefix.* \(a fault that the test asked for\); run again later$", said)


@pytest.mark.parametrize("fault", ["cut", "lost", 503])
def test_an_upload_that_breaks_off_goes_on_where_it_was(
    gcs: FakeGCS, bucket: CloudStore, big: Path, fault: str | int
) -> None:
    gcs.faults["chunk"] = [None, None, fault, None, fault]
    bucket.upload(big, "key")
    assert gcs.content("prefix/key") == big.read_bytes()
    assert gcs.requests == ["start", *["chunk"] * 13]


@pytest.mark.parametrize("operation", ["insert", "start"])
@pytest.mark.parametrize("fault", ["cut", "lost"])
def test_an_upload_that_breaks_off_at_once_is_done_again(
    gcs: FakeGCS, bucket: CloudStore, big: Path, operation: str, fault: str
) -> None:
    gcs.faults[operation] = [fault]
    OPERATIONS[operation](bucket, big)
    assert gcs.content("prefix/other") == (b"1" if operation == "insert" else big.read_bytes())


def test_an_upload_that_never_ends_well_leaves_the_old_object(gcs: FakeGCS, bucket: CloudStore, big: Path) -> None:
    bucket.write("key", b"old")
    gcs.faults["chunk"] = [None, None, 403]
    with pytest.raises(FatalError):
        bucket.upload(big, "key")
    assert gcs.content("prefix/key") == b"old"


def test_a_writer_killed_in_mid_upload_leaves_the_old_object(
    gcs: FakeGCS, bucket: CloudStore, big: Path, child: Start
) -> None:
    bucket.write("key", b"old")
    uploads = """
        import sys
        from pathlib import Path
        from nothing_gpt import cloud_store
        cloud_store.CHUNK_BYTES = 1 << 20
        cloud_store.CloudStore("gs://bucket/prefix").upload(Path(sys.argv[1]), "key")
    """
    gcs.faults["chunk"] = [None, lambda: process.kill()]
    process = child(uploads, big)
    assert process.wait() == -9
    assert gcs.content("prefix/key") == b"old"


def test_a_download_that_breaks_off_is_whole_in_the_end(gcs: FakeGCS, bucket: CloudStore, big: Path) -> None:
    bucket.upload(big, "key")
    gcs.faults["download"] = ["cut", 503, "cut"]
    assert bucket.read("key") == big.read_bytes()
    gcs.faults["download"] = [None, "cut", 503, "cut"]
    assert bucket.fetch("key").read_bytes() == big.read_bytes()
    assert gcs.faults["download"] == []


@pytest.mark.parametrize("operation", ["insert", "chunk"])
def test_what_is_damaged_on_the_way_there_does_not_become_the_object(
    gcs: FakeGCS, bucket: CloudStore, big: Path, operation: str
) -> None:
    gcs.put("prefix/other", b"old")
    gcs.faults[operation] = ["damaged"]
    with pytest.raises(TransientError, match=r"prefix/other: damaged on the way .*; run again"):
        OPERATIONS[operation](bucket, big)
    assert gcs.content("prefix/other") == b"old"


@pytest.mark.parametrize("faults", [["damaged"], ["cut", "damaged"]])
def test_what_is_damaged_on_the_way_back_is_noticed_also_after_a_break(
    gcs: FakeGCS, bucket: CloudStore, big: Path, faults: list[str]
) -> None:
    bucket.upload(big, "key")
    for get in (bucket.read, bucket.fetch):
        gcs.faults["download"] = [*faults]
        with pytest.raises(TransientError, match=r"prefix/key: damaged on the way .*; run again"):
            get("key")
    assert bucket.fetch("key").read_bytes() == big.read_bytes()


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ((403, "forbidden", "no storage.objects.create"), FatalError, "forbidden (no storage.objects.create); give"),
        ((403, "quotaExceeded", "no more today"), TransientError, "over a quota (no more today); raise it, or run"),
        ((400, "invalid", "Bad name"), FatalError, "refused (400: Bad name)"),
    ],
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_refusal_is_one_line_that_says_what_where_and_what_to_do(
    gcs: FakeGCS,
    bucket: CloudStore,
    big: Path,
    operation: str,
    fault: tuple[int, str, str],
    kind: type[NothingGPTError],
    said: str,
) -> None:
    bucket.write("key", b"1")
    gcs.faults[operation] = [fault]
    message = refused(kind, lambda: OPERATIONS[operation](bucket, big))
    assert message.startswith("gs://bucket/prefix")
    assert said in message


def test_a_bucket_that_is_not_there_is_one_line(gcs: FakeGCS) -> None:
    said = refused(FatalError, lambda: open_store("gs://typo/prefix"))
    assert said.startswith(
        "gs://typo/prefix/FORMAT: no such bucket (The specified bucket does not exist.); correct its"
    )


def test_a_bucket_deleted_behind_our_back_is_one_line(gcs: FakeGCS, bucket: CloudStore, big: Path) -> None:
    gcs.exists = False
    for act in (
        lambda: bucket.write("key", b""),
        lambda: bucket.upload(big, "key"),
        lambda: bucket.swap("key", b"", None),
        lambda: list(bucket.list()),
    ):
        assert "no such bucket" in refused(FatalError, act)


def test_a_server_that_is_not_there_is_a_transient_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setattr(cloud_store, "RETRY", cloud_store.RETRY.with_timeout(0.1))
    said = refused(TransientError, lambda: CloudStore("gs://bucket").read("key"))
    assert re.search(r"gs://bucket/key: tried again for .* \(.*Connection refused\); run again later$", said)


def test_no_credentials_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    assert "no Google Cloud credentials; run `gcloud auth application-default login`" in refused(
        FatalError, lambda: open_store("gs://bucket/prefix")
    )


def test_credentials_that_are_refused_is_one_line(gcs: FakeGCS) -> None:
    gcs.faults["download"] = [401]
    assert "gs://bucket/FORMAT: the Google Cloud credentials are refused" in refused(
        FatalError, lambda: open_store("gs://bucket", Credentials("expired"))
    )


def test_given_credentials_are_used(gcs: FakeGCS) -> None:
    open_store("gs://bucket", Credentials("secret"))
    assert gcs.tokens == {"Bearer secret"}


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nothing_gpt.cloud_store")
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    assert "needs the package google.cloud.storage; pip install 'nothing-gpt[gcp]'" in refused(
        FatalError, lambda: open_store("gs://bucket")
    )


def test_the_library_of_google_is_imported_only_for_a_bucket(child: Start, tmp_path: Path) -> None:
    program = """
        import sys
        from nothing_gpt.store import open_store
        open_store(sys.argv[1])
        print([name for name in sys.modules if name.startswith("google.")])
    """
    assert child(program, tmp_path / "store").communicate() == ("[]\n", "")
