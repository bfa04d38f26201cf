"""A store in Google Cloud Storage: objects below `gs://bucket/prefix`, and local copies of those that were fetched.

Retries, resumable uploads, parallel downloads and checksums are the library's own; here they get a deadline, and their
errors become the three kinds of `errors.py`. Nothing else in this package imports google-cloud-storage.
"""

import base64
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.auth.credentials import Credentials
from google.cloud.storage import Blob, Client, transfer_manager
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY

from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.store import reporting_disk

DEADLINE_S = 120.0
"""How long one request is tried again: one object, or one chunk of a large one."""
RETRY = DEFAULT_RETRY.with_timeout(DEADLINE_S)
CHUNK_BYTES = 32 << 20
"""A large object is sent in pieces of this size, one in memory at a time, and fetched in such pieces by 8 threads."""
SMALL_BYTES = 8 << 20
"""Up to here the library uploads in one request; larger objects by resumable upload."""
CRC32C = "crc32c"


class CloudStore:
    """Objects of a bucket. Safe to use from several threads and, with the same cache, from several processes."""

    def __init__(self, uri: str, credentials: Credentials | None = None, cache: Path | None = None):
        """`credentials` are by default what google.auth.default finds (Application Default Credentials, Workload
        Identity), and none for the emulator that STORAGE_EMULATOR_HOST names. `cache` is where fetched objects are
        kept, by default below ~/.cache (XDG_CACHE_HOME); it may be deleted at any time.

        Raises:
            FatalError: an address that is none, or no credentials.
        """
        # No part of the prefix is empty, `.` or `..`: the copies of what is fetched would lie outside of the cache.
        match = re.fullmatch(r"gs://([a-z0-9][a-z0-9._-]+[a-z0-9])((?:/(?!\.{1,2}(?:/|$))[^/]+)*)/*", uri)
        if match is None:
            raise FatalError(f"{uri}: no address of a bucket; give gs://BUCKET/PREFIX")
        name, prefix = match[1], match[2].removeprefix("/")
        self.uri = f"gs://{name}/{prefix}".rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._cache = (cache or _user_cache()) / name / prefix
        with self._reporting():
            self._client = Client(project=None, credentials=credentials)
        self._bucket = self._client.bucket(name)

    def read(self, key: str) -> bytes | None:
        with self._reporting(key):
            try:
                return _content(self._blob(key))
            except api.NotFound:
                return None

    def fetch(self, key: str) -> Path:
        path = self._cache / key
        with reporting_disk(path), self._reporting(key):
            while blob := self._stored(key):
                if not _is_copy(path, blob):
                    try:
                        _download(blob, path)
                    except api.NotFound:  # replaced or deleted between the two requests
                        continue
                return path
            path.unlink(missing_ok=True)
        raise FileNotFoundError(key)

    def size(self, key: str) -> int | None:
        with self._reporting(key):
            blob = self._stored(key)
            return blob.size if blob else None

    def copy(self, source: str, target: str) -> None:
        with self._reporting(target):
            found = self._stored(source)
            if found is None:
                raise FileNotFoundError(source)
            copied, token = self._blob(target), None
            while True:  # one call, but for gigabytes that go to another kind of bucket
                token, *_ = copied.rewrite(found, token=token, retry=RETRY)  # type: ignore[arg-type] # as everywhere
                if token is None:
                    return

    def write(self, key: str, data: bytes) -> None:
        with self._reporting(key):
            self._blob(key).upload_from_string(data, checksum=CRC32C, retry=RETRY)

    def stream(self, key: str, pieces: Iterable[bytes]) -> None:
        with reporting_disk(Path(tempfile.gettempdir())), tempfile.SpooledTemporaryFile(SMALL_BYTES) as file:
            file.writelines(pieces)
            with self._reporting(key):
                blob = self._blob(key, CHUNK_BYTES)
                blob.upload_from_file(file, size=file.tell(), rewind=True, checksum=CRC32C, retry=RETRY)

    def upload(self, file: Path, key: str) -> None:
        with self._reporting(key):
            self._blob(key, CHUNK_BYTES).upload_from_filename(str(file), checksum=CRC32C, retry=RETRY)

    def swap(self, key: str, data: bytes, expected: bytes | None) -> bool:
        mine = self._blob(key)
        mine.metadata = {"swap": secrets.token_hex(8)}
        with self._reporting(key):
            present = self._stored(key)
            try:
                if (_content(present) if present else None) != expected:
                    return False
            except api.NotFound:  # deleted or replaced while it was read
                return False
            generation = present.generation if present else 0
            try:
                mine.upload_from_string(data, checksum=CRC32C, if_generation_match=generation, retry=RETRY)
            except api.PreconditionFailed:
                # Another was faster, or we were at an earlier attempt, whose answer was lost.
                present = self._stored(key)
                return present is not None and present.metadata == mine.metadata
            return True

    def list(self, prefix: str = "") -> Iterator[str]:
        folder = self._prefix + (f"{prefix}/" if prefix else "")
        with self._reporting(prefix):
            for blob in self._client.list_blobs(
                self._bucket, prefix=folder, fields="items(name),nextPageToken", retry=RETRY
            ):
                if not blob.name.endswith("/"):  # a folder that somebody made in the console
                    yield blob.name.removeprefix(self._prefix)

    def delete(self, key: str) -> None:
        with self._reporting(key):
            try:
                self._blob(key).delete(retry=RETRY)
            except api.NotFound:
                pass
        (self._cache / key).unlink(missing_ok=True)

    def _blob(self, key: str, chunk_bytes: int | None = None) -> Blob:
        return self._bucket.blob(self._prefix + key, chunk_size=chunk_bytes)

    def _stored(self, key: str) -> Blob | None:
        """The object as it is now: its generation, checksum and metadata."""
        return self._bucket.get_blob(self._prefix + key, retry=RETRY)

    @contextmanager
    def _reporting(self, key: str = "") -> Iterator[None]:
        """Turns the libraries' errors into the three kinds, one clear line each."""
        where = f"{self.uri}/{key}" if key else self.uri
        try:
            yield
        except auth.DefaultCredentialsError:
            raise FatalError(
                f"{where}: no Google Cloud credentials; run `gcloud auth application-default login`, or set "
                "GOOGLE_APPLICATION_CREDENTIALS to a key file"
            ) from None
        except (api.Unauthorized, auth.RefreshError) as error:
            raise FatalError(
                f"{where}: the Google Cloud credentials are refused ({_reason(error)}); run "
                "`gcloud auth application-default login` again, or renew the key"
            ) from None
        except api.Forbidden as error:
            codes = [str(one.get("reason")) for one in _details(error).get("errors", [])]
            if re.search("limit|quota", " ".join(codes), re.IGNORECASE):
                raise TransientError(
                    f"{where}: over a quota ({_reason(error)}); raise it, or run again later"
                ) from None
            raise FatalError(
                f"{where}: forbidden ({_reason(error)}); give the account roles/storage.objectUser on the bucket"
            ) from None
        except api.NotFound as error:
            raise FatalError(
                f"{where}: no such bucket ({_reason(error)}); correct its name, or make it with "
                f"`gcloud storage buckets create gs://{self._bucket.name}`"
            ) from None
        except DataCorruption:
            raise TransientError(f"{where}: damaged on the way (its CRC32C does not match); run again") from None
        except api.RetryError as error:
            raise TransientError(
                f"{where}: tried again for {DEADLINE_S:.0f} s ({_reason(error.cause or error)}); run again later"
            ) from None
        except (auth.GoogleAuthError, requests.RequestException) as error:
            raise TransientError(f"{where}: cannot be reached ({_reason(error)}); run again") from None
        except api.GoogleAPICallError as error:
            if "crc32c" in _reason(error).lower():
                raise TransientError(f"{where}: damaged on the way ({_reason(error)}); run again") from None
            raise FatalError(f"{where}: refused ({error.code}: {_reason(error)}); mend that, and run again") from None


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nothing-gpt"


def _content(blob: Blob) -> bytes:
    # Tried again as a whole: a download that the library takes up where it broke off is not checked by it.
    return RETRY(blob.download_as_bytes)(checksum=CRC32C, retry=None)  # type: ignore[arg-type] # None: none inside


def _is_copy(path: Path, blob: Blob) -> bool:
    """Whether a file has the object's bytes."""
    checksum = google_crc32c.Checksum()
    try:
        with path.open("rb") as file:
            for _ in checksum.consume(file, 1 << 17):
                pass
            return file.tell() == blob.size and base64.b64encode(checksum.digest()).decode() == blob.crc32c
    except FileNotFoundError:
        return False


def _download(blob: Blob, path: Path) -> None:
    """One generation of an object, several chunks at once; checked against its CRC32C before it gets its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        transfer_manager.download_chunks_concurrently(
            blob,
            str(temporary),
            chunk_size=CHUNK_BYTES,
            download_kwargs={"retry": RETRY},
            worker_type=transfer_manager.THREAD,
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _details(error: BaseException) -> dict:
    """What the server says about an error, in the JSON API's own form."""
    try:
        return error.response.json()["error"]  # type: ignore[attr-defined]
    except (AttributeError, ValueError, KeyError, TypeError):
        return {}


def _reason(error: BaseException) -> str:
    """The server's own words, or what is at the bottom of an error: "Connection refused" rather than a pool's story."""
    while error.__context__ is not None and not isinstance(error, api.GoogleAPICallError):
        error = error.__context__
    said = error.args[0] if isinstance(error, auth.GoogleAuthError) and error.args else error
    said = str(_details(error).get("message") or getattr(error, "message", "") or said)
    return (said.splitlines() or [type(error).__name__])[0]
