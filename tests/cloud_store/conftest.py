"""A store in the bucket of our fake server, with small chunks and no patience."""

import os
from pathlib import Path

import pytest

from nothing_gpt import cloud_store
from nothing_gpt.cloud_store import CloudStore
from tests.fake_gcs import FakeGCS

MIB = 1 << 20


@pytest.fixture(autouse=True)
def small_and_hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 1 MiB, and retries without their waits."""
    monkeypatch.setattr(cloud_store, "CHUNK_BYTES", MIB)
    monkeypatch.setattr(cloud_store, "RETRY", cloud_store.RETRY.with_delay(initial=0.001, maximum=0.01))


@pytest.fixture
def bucket(gcs: FakeGCS) -> CloudStore:
    return CloudStore("gs://bucket/prefix")


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file that is not uploaded in one request, but in 11 chunks."""
    (tmp_path / "big").write_bytes(os.urandom(10 * MIB + 12345))
    return tmp_path / "big"
