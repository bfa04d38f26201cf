"""A vLLM at several addresses: an adapter is served by all of them, or by those that answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nothing_gpt.adapters import CONFIG, WEIGHTS, adapter_digest
from nothing_gpt.artifacts import Artifact, Stage
from nothing_gpt.bases import Base
from nothing_gpt.config import PlaceSettings, Settings
from nothing_gpt.errors import TransientError
from nothing_gpt.processes import free_port
from nothing_gpt.serve.switch import versioned_name
from tasks.place import LocalPlace, Models
from tests.fake_vllm import FakeVLLM, save_adapter, serving_adapters


@pytest.fixture
def servers() -> Iterator[list[FakeVLLM]]:
    with serving_adapters() as one, serving_adapters() as other:
        yield [one, other]


class Stand:
    """A place with vLLM at these addresses, and an adapter in its store."""

    def __init__(self, folder: Path, *urls: str):
        place = PlaceSettings(kind="local", data=str(folder / "data"), serve_url=",".join(urls))
        self.place = LocalPlace(Settings(place=place))
        made = save_adapter(folder / "made", 0.5)
        self.adapter: Artifact = self.place.workshop.adopt(
            Stage("adapter", 1), {name: made / name for name in (CONFIG, WEIGHTS)}
        )
        self.folder = self.place.workshop.folder(self.adapter)
        self.name = versioned_name("seinfeld", adapter_digest(self.folder))
        self.service = self.place.adapter(Models(Base("base", "base"), self.adapter), self.adapter)


def test_an_adapter_is_loaded_at_every_replica_once(tmp_path: Path, servers: list[FakeVLLM]) -> None:
    stand = Stand(tmp_path, *(server.url for server in servers))
    for _ in range(2):
        assert stand.service.open()[0] == [server.url for server in servers]
    assert [server.loads for server in servers] == [[(stand.name, str(stand.folder), False)]] * 2


def test_what_answers_is_the_same_at_any_addresses(tmp_path: Path, servers: list[FakeVLLM]) -> None:
    one, both = Stand(tmp_path, servers[0].url), Stand(tmp_path, *(server.url for server in servers))
    assert one.service.identity == both.service.identity


def test_a_replica_that_does_not_answer_holds_up_no_other(
    tmp_path: Path, servers: list[FakeVLLM], capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    stand = Stand(tmp_path, nowhere, servers[0].url)
    assert stand.service.open()[0] == [nowhere, servers[0].url]
    assert stand.name in servers[0].served()
    assert "going on without a replica: nothing answers at" in capsys.readouterr().err


def test_where_no_replica_answers_the_run_may_be_tried_again(tmp_path: Path) -> None:
    stand = Stand(tmp_path, *(f"http://127.0.0.1:{free_port()}/v1" for _ in range(2)))
    with pytest.raises(TransientError, match="nothing answers at"):
        stand.service.open()
