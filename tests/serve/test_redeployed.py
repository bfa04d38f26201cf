"""A vLLM that loads no adapter while it runs, as one replica beside another: deployed anew with each version."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nothing_gpt.artifacts import Workshop
from nothing_gpt.errors import FatalError
from nothing_gpt.serve import switch
from nothing_gpt.serve.switch import Redeployed, Server
from tests.fake_vllm import FakeVLLM, save_adapter, save_base, serving_adapters
from tests.serve.stand import NAME, Stand

pytest.importorskip("torch")
THERE = "/vol/adapters"


@dataclass
class Beside(Stand):
    """A stand with a server elsewhere; `starts` are the adapters with which it was deployed."""

    there: FakeVLLM
    broken: bool = False
    starts: list[Path] = field(default_factory=list)

    @property
    def server(self) -> Server:
        elsewhere = Redeployed(
            self.there.url, NAME, adapters=THERE, deploy=self.deploy, deployed=lambda: self.there.served().get(NAME)
        )
        return replace(super().server, replicas=(elsewhere,))

    def deploy(self, folder: Path) -> None:
        self.starts.append(folder)
        if not self.broken:
            self.there.serve(NAME, folder)
            self.there.paths[NAME] = self.path(folder)

    def path(self, folder: Path) -> str:
        return f"{THERE}/{folder.parent.name}/{folder.name}"

    def both_serve(self, adapter: Path) -> bool:
        return self.serves(adapter) and self.there.answers_like(NAME, adapter) and not self.server.strays(adapter)


@pytest.fixture
def stand(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Beside]:
    monkeypatch.setattr(switch, "POLL_S", 0.01)
    with serving_adapters() as vllm, serving_adapters() as there:
        start = save_adapter(tmp_path / "start", 0.25)
        vllm.serve(NAME, start)
        yield Beside(vllm, workshop, start, save_base(tmp_path / "base"), there)


def test_it_is_deployed_with_each_version_and_nothing_is_loaded_while_it_runs(stand: Beside) -> None:
    first, second = stand.candidate(0.5), stand.candidate(0.75)
    stand.promote(first)
    stand.promote(second)
    assert stand.both_serve(second.folder)
    stand.roll_back()
    assert stand.both_serve(first.folder)
    assert stand.starts == [first.folder, second.folder, first.folder]
    assert stand.there.loads == []


def test_where_the_deployment_does_not_come_up_the_former_adapter_is_deployed_and_served(
    stand: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = stand.candidate(0.5), stand.candidate(0.75)
    stand.promote(first)
    monkeypatch.setattr(switch, "START_S", 0.1)
    stand.broken = True
    error = stand.refused(second)
    assert isinstance(error, FatalError)
    assert f"does not serve {stand.path(second.folder)}" in str(error)
    assert stand.starts[-1] == first.folder
    assert stand.both_serve(first.folder)


def test_what_was_deployed_by_a_promotion_that_died_is_put_right(stand: Beside) -> None:
    first = stand.candidate(0.5)
    stand.promote(first)
    stand.deploy(stand.candidate(0.75).folder)
    assert len(stand.server.strays(first.folder)) == 1
    stand.sync()
    assert stand.both_serve(first.folder)
