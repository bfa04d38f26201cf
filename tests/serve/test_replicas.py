"""Several vLLMs that serve the same, and what a restart of them loads: after a promotion, a rollback, a failure and a
`sync` they all have the registry's adapter.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nothing_gpt.artifacts import Workshop
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.serve.switch import Server
from tests.fake_vllm import FakeVLLM, save_adapter, save_base, serving_adapters
from tests.serve.stand import NAME, Stand, when_switching

pytest.importorskip("torch")


@dataclass
class Replicas(Stand):
    """A stand with a second server, and a link to what a restart loads."""

    other: FakeVLLM
    link: Path

    @property
    def server(self) -> Server:
        first = super().server
        return replace(first, replicas=(replace(first, url=self.other.url),), link=self.link)

    def all_serve(self, adapter: Path) -> bool:
        """Whether both answer as this adapter does, and would after a restart."""
        both = [self.serves(adapter), replace(self, vllm=self.other).serves(adapter), self.link.readlink() == adapter]
        assert all(both) == (self.server.strays(adapter) == [])
        return all(both)


@pytest.fixture
def stand(workshop: Workshop, tmp_path: Path) -> Iterator[Replicas]:
    with serving_adapters() as vllm, serving_adapters() as other:
        start, link = save_adapter(tmp_path / "start", 0.25), tmp_path / "current"
        for server in (vllm, other):
            server.serve(NAME, start)
        link.symlink_to(start)
        yield Replicas(vllm, workshop, start, save_base(tmp_path / "base"), other, link)


def test_a_promotion_and_a_rollback_reach_all_and_what_a_restart_loads(stand: Replicas) -> None:
    assert stand.all_serve(stand.start)
    first, second = stand.candidate(0.5), stand.candidate(0.75)
    stand.promote(first)
    stand.promote(second)
    assert stand.all_serve(second.folder)
    stand.roll_back()
    assert stand.all_serve(first.folder)
    stand.roll_back()
    assert stand.all_serve(stand.start)


def test_where_one_does_not_take_the_candidate_all_go_back(stand: Replicas) -> None:
    former = stand.candidate(0.5)
    stand.promote(former)
    stand.other.deaf = True
    assert f"does not answer as the new adapter does at {stand.other.url}" in str(stand.refused(stand.candidate(0.75)))
    assert stand.all_serve(former.folder)


def test_where_one_does_not_answer_none_is_switched(stand: Replicas) -> None:
    stand.other.dead = True
    assert isinstance(stand.refused(stand.candidate()), TransientError)
    assert stand.serves(stand.start)


def test_where_one_dies_in_the_middle_the_others_go_back_and_sync_mends_the_rest(stand: Replicas) -> None:
    candidate, former = stand.candidate(0.75), stand.candidate(0.5)
    stand.promote(former)
    # The first has switched when the second dies.
    when_switching(replace(stand, vllm=stand.other), lambda: setattr(stand.other, "dead", True))
    assert "the former adapter cannot be put back" in str(stand.refused(candidate))
    assert stand.serves(former.folder)
    stand.other.dead = False
    stand.other.serve(NAME, stand.start)  # as a server comes back
    assert stand.sync() == stand.registry.current_version
    assert stand.all_serve(former.folder)


@pytest.mark.parametrize("which", ["vllm", "other"])
def test_a_bad_adapter_is_taken_back_though_one_does_not_answer(
    stand: Replicas, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    former = stand.candidate(0.5)
    stand.promote(former)
    stand.promote(stand.candidate(0.75))
    dead, alive = (stand.vllm, stand.other) if which == "vllm" else (stand.other, stand.vllm)
    dead.dead = True
    assert stand.roll_back() == stand.registry.current_version
    assert stand.registry.current == 1
    assert replace(stand, vllm=alive).serves(former.folder)
    assert stand.link.readlink() == former.folder
    assert dead.url.removesuffix("/v1") in capsys.readouterr().err
    dead.dead = False
    stand.sync()
    assert stand.all_serve(former.folder)


def test_where_none_answers_nothing_is_taken_back(stand: Replicas) -> None:
    stand.promote(stand.candidate())
    stand.vllm.dead = stand.other.dead = True
    before = stand.registry
    with pytest.raises(TransientError):
        stand.roll_back()
    assert stand.registry == before


def test_sync_puts_right_what_answers_and_names_what_does_not(stand: Replicas) -> None:
    candidate = stand.candidate()
    stand.promote(candidate)
    stand.other.serve(NAME, stand.start)
    stand.vllm.dead = True
    down, stray = stand.server.strays(candidate.folder)
    assert stand.vllm.url.removesuffix("/v1") in down
    assert stray == f"{stand.other.url} serves 'seinfeld' from {stand.start}"
    with pytest.raises(TransientError):
        stand.sync()
    assert replace(stand, vllm=stand.other).serves(candidate.folder)


def test_where_what_a_restart_loads_cannot_be_changed_nothing_is(stand: Replicas) -> None:
    stand.promote(stand.candidate(0.5))
    former = stand.link.readlink()
    blocked = stand.link.with_name(f".{stand.link.name}")
    blocked.mkdir()
    assert "cannot be used" in str(stand.refused(stand.candidate(0.75)))
    assert stand.all_serve(former)
    blocked.rmdir()


def test_where_the_registry_cannot_be_changed_a_restart_loads_the_former_adapter(
    stand: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TransientError("the store does not answer")

    former = stand.candidate(0.5)
    stand.promote(former)
    monkeypatch.setattr("nothing_gpt.serve.promote.swap", fail)
    stand.refused(stand.candidate(0.75))
    assert stand.all_serve(former.folder)


def test_sync_gives_servers_that_were_restarted_the_promoted_adapter(stand: Replicas) -> None:
    candidate = stand.candidate()
    stand.promote(candidate)
    before = stand.registry
    stand.vllm.serve(NAME, stand.start)
    stand.other.unload({"lora_name": NAME})
    stand.link.unlink()
    assert stand.server.strays(candidate.folder) == [
        f"{stand.vllm.url} serves 'seinfeld' from {stand.start}",
        f"{stand.other.url} does not serve 'seinfeld'",
        f"a restart would not load 'seinfeld' from {candidate.folder}",
    ]
    stand.sync()
    assert stand.all_serve(candidate.folder)
    assert stand.registry == before


def test_sync_gives_the_stable_name_back_where_a_first_promotion_died(stand: Replicas) -> None:
    stand.vllm.serve(NAME, stand.candidate().folder)
    assert stand.sync() is None
    assert stand.all_serve(stand.start)
    assert stand.registry.versions == []


def test_sync_is_content_with_the_right_adapter_from_another_path(stand: Replicas, tmp_path: Path) -> None:
    stand.vllm.serve(NAME, save_adapter(tmp_path / "copy", 0.25))
    stand.sync()
    assert stand.all_serve(stand.start)


def test_sync_that_a_server_refuses_says_so(stand: Replicas) -> None:
    stand.other.refuses = lambda name, path: (500, "no room for it")
    with pytest.raises(FatalError, match="no room for it"):
        stand.sync()
