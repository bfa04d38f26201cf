"""The stand that tests of promotion share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nothing_gpt.artifacts import Workshop
from tests.fake_vllm import save_adapter, save_base, serving_adapters
from tests.serve.stand import NAME, Stand


@pytest.fixture
def stand(workshop: Workshop, tmp_path: Path) -> Iterator[Stand]:
    with serving_adapters() as vllm:
        start = save_adapter(tmp_path / "start", 0.25)
        vllm.serve(NAME, start)
        yield Stand(vllm, workshop, start, save_base(tmp_path / "base"))
