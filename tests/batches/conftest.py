"""A stand for every test of the batches: a fake provider, a store, and a client that does not really wait."""

from collections.abc import Iterator

import pytest

from nothing_gpt.store import Store
from tests.batches.stand import Stand
from tests.fake_batches import FakeBatches, serving_batches


@pytest.fixture
def provider() -> Iterator[FakeBatches]:
    with serving_batches() as fake:
        yield fake


@pytest.fixture
def stand(provider: FakeBatches, store: Store) -> Stand:
    return Stand(provider, store)
