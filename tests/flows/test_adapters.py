"""`nothing-gpt adapters` where a server runs: shown, promoted by hand, taken back, put right. No run and no Prefect is
needed for it; what a run would have left is made by hand.
"""

import getpass
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.adapters import CONFIG, WEIGHTS, adapter_digest
from nothing_gpt.artifacts import MANIFEST, Artifact, Stage, Workshop
from nothing_gpt.serve.registry import Approval, Registry, Rollback, promoted, read_registry, rolled_back, swap
from nothing_gpt.workshops import folder_workshop
from tests.fake_vllm import save_adapter, save_base
from tests.flows.conftest import Call, Ended
from tests.flows.fakes import Engines, engines

pytest.importorskip("torch")


@dataclass
class Stand:
    """A place with a server that serves the starting adapter, and the program's `adapters` commands there."""

    place: Engines
    call: Call
    workshop: Workshop
    start: Artifact

    @classmethod
    def at(cls, place: Engines, call: Call) -> "Stand":
        workshop = folder_workshop(place.settings().place)
        start = workshop.adopt(Stage("sft", 1), {name: place.start / name for name in (CONFIG, WEIGHTS)})
        return cls(place, call, workshop, start)

    def __call__(self, *arguments: str) -> Ended:
        return self.call("adapters", *arguments, *self.place.options())

    @property
    def registry(self) -> Registry:
        return read_registry(self.place.store)

    def trained(self, level: float) -> Artifact:
        """An adapter as training leaves it."""

        def build(folder: Path) -> dict[str, Any]:
            save_adapter(folder, level)
            (folder / "metrics.json").write_text('{"eval_accuracy": 0.8}')
            return {}

        return self.workshop.make(Stage("train", 1), {"level": level}, {"adapter": self.start}, build)

    def register(self, adapter: Artifact, place: str = "local") -> None:
        """What a run's promotion leaves, on the server too."""
        folder = self.workshop.folder(adapter)
        before = self.registry
        fields: dict[str, Any] = {"name": "seinfeld", "place": place, "metrics": {"win_rate": 0.75}}
        approval = Approval(by="anna", reason="funnier [really]", at=0)
        after = promoted(
            before, artifact=adapter.key, fingerprint=adapter.fingerprint, digest=adapter_digest(folder),
            reasons=["win rate 0.75 [0.6, 0.9]"], approval=approval, lineage={"train": adapter.key}, **fields,
        )  # fmt: skip
        swap(self.place.store, before, after)
        self.place.vllm.serve("seinfeld", folder)

    def decide(self, adapter: Artifact, passed: bool = True, against: Artifact | None = None) -> None:
        """What a run leaves whose gate compared the adapter with another, and promoted nothing."""
        candidate, met = (adapter_digest(self.workshop.folder(one)) for one in (adapter, against or self.start))
        identities = {"references": {"start": f"{met} on base"}, "candidate": f"{candidate} on base"}
        evaluation = self.workshop.make(Stage("evaluate", 2), identities, {}, lambda folder: {})
        summary = {
            "run": "20260101-000000-000",
            "gate": {"passed": passed, "reasons": [{"passed": passed, "text": "win rate 0.70"}]},
            "win_rate": {"value": 0.7},
            "stages": {"train": {"artifact": adapter.key}, "evaluate": {"artifact": evaluation.key},
                       "gate": {"artifact": None}},
        }  # fmt: skip
        self.place.store.write("runs/20260101-000000-000/summary.json", json.dumps(summary).encode())

    def serves(self, adapter: Artifact) -> bool:
        """Whether the server answers as the adapter does, and would after a restart."""
        folder = self.workshop.folder(adapter)
        return self.place.vllm.answers_like("seinfeld", folder) and (self.place.data / "current").readlink() == folder


@pytest.fixture
def stand(tmp_path: Path, call: Call) -> Iterator[Stand]:
    with engines(tmp_path) as place:
        yield Stand.at(place, call)


@pytest.fixture
def adapters(stand: Stand) -> list[Artifact]:
    """Two versions, the second current."""
    made = [stand.trained(level) for level in (0.5, 0.75)]
    for adapter in made:
        stand.register(adapter)
    return made


def test_a_version_is_shown_with_all_that_is_known_of_it(stand: Stand, adapters: list[Artifact]) -> None:
    shown = stand("show", "2").out
    words = " ".join(shown.split())
    digest = adapter_digest(stand.workshop.folder(adapters[1]))
    for line in (
        "version 2 current",
        "in place local, instead of version 1",
        "approved 1970-01-01 00:00 UTC, by anna: funnier [really]",
        "taken back no",
        f"artifact {adapters[1].key}",
        "files whole, in",
        f"digest {digest}",
        "metrics win_rate 0.75",
        f"lineage train {adapters[1].key}",
        "reasons win rate 0.75 [0.6, 0.9]",
    ):
        assert line in words
    assert "version 1 previous" in " ".join(stand("show", "1").out.split())
    shutil.rmtree(stand.workshop.folder(adapters[1]))
    assert "files gone from the store, or damaged" in " ".join(stand("show", "2").out.split())
    assert "no version 3" in stand("show", "3").error


def test_a_rollback_is_recorded_with_its_reason_and_whoever_did_it(stand: Stand, adapters: list[Artifact]) -> None:
    assert stand("rollback", "--reason", "too rude").err == "seinfeld is version 1 again\n"
    assert stand.serves(adapters[0])
    taken_back = stand.registry.versions[1].taken_back
    assert taken_back
    assert (taken_back.reason, taken_back.by) == ("too rude", getpass.getuser())
    assert stand("rollback").err == "seinfeld is the starting adapter again\n"
    assert stand.serves(stand.start)
    assert [line.split()[-2:] for line in stand("list").out.splitlines()[1:]] == [["taken", "back"]] * 2
    assert stand("rollback").error == "no adapter is promoted; run `nothing-gpt run` first"


def test_an_earlier_version_is_promoted_by_hand_as_a_new_one_and_taken_back_again(
    stand: Stand, adapters: list[Artifact]
) -> None:
    first = stand.registry.versions[0]
    assert stand("promote", "1", "--reason", "the better one").err == f"seinfeld is version 3, {adapters[0].key}\n"
    assert stand.serves(adapters[0])
    third = stand.registry.current_version
    assert third
    assert third.approval
    assert (third.replaces, third.approval.reason, third.digest) == (2, "the better one", first.digest)
    assert third.reasons == [*first.reasons, "promoted by hand, as version 1 was"]
    assert stand("promote", adapters[0].key, "--reason", "again").code == 0  # what is current already
    assert stand.registry.current == 3
    assert stand("rollback").code == 0
    assert stand.serves(adapters[1])


def test_an_adapter_that_a_run_s_gate_passed_is_promoted_by_hand(stand: Stand) -> None:
    adapter = stand.trained(0.5)
    stand.decide(adapter)
    assert stand("promote", adapter.key, "--reason", "approved at last").code == 0
    assert stand.serves(adapter)
    (version,) = stand.registry.versions
    assert version.metrics == {"eval_accuracy": 0.8, "win_rate": 0.7}
    assert version.reasons == ["win rate 0.70", "promoted by hand after 20260101-000000-000"]
    assert set(version.lineage) == {"train", "evaluate"}


def never_seen(stand: Stand, adapter: Artifact) -> None: ...


def refused(stand: Stand, adapter: Artifact) -> None:
    stand.decide(adapter, passed=False)


def before_another_came(stand: Stand, adapter: Artifact) -> None:
    stand.decide(adapter)
    stand.register(stand.trained(0.6))


def before_it_was_made_again_otherwise(stand: Stand, adapter: Artifact) -> None:
    stand.decide(adapter)
    other = stand.trained(0.6)
    for name in (WEIGHTS, MANIFEST):
        stand.place.store.copy(f"{other.key}/{name}", f"{adapter.key}/{name}")


def with_a_damaged_summary(stand: Stand, adapter: Artifact) -> None:
    stand.place.store.write("runs/20260101-000000-000/summary.json", b'{"run": ')


@pytest.mark.parametrize(
    ("past", "complaint"),
    [
        (before_it_was_made_again_otherwise, "compared other weights of"),
        (with_a_damaged_summary, "what its gate said is unknown"),
        (never_seen, "no run's gate has looked at"),
        (refused, "the gate of 20260101-000000-000 refused"),
        (before_another_came, "did not compare"),
    ],
)
def test_an_adapter_without_a_gate_s_word_is_promoted_only_where_that_is_said(
    stand: Stand, past: Callable[[Stand, Artifact], None], complaint: str
) -> None:
    adapter = stand.trained(0.5)
    past(stand, adapter)
    before = stand.registry
    error = stand("promote", adapter.key, "--reason", "I like it").error
    assert complaint in error
    assert error.endswith("run again, or promote it with --without-gate")
    assert stand.registry == before
    assert stand("promote", adapter.key, "--reason", "I like it", "--without-gate").code == 0
    assert stand.serves(adapter)
    assert stand.registry.versions[-1].reasons == ["promoted by hand without the gate"]


@pytest.mark.parametrize(
    ("wanted", "complaint"), [("7", "no version '7'"), ("x", "no version 'x'"), ("train/0", "gone")]
)
def test_what_is_not_there_is_not_promoted(stand: Stand, wanted: str, complaint: str) -> None:
    assert complaint in stand("promote", wanted, "--reason", "why not").error


def test_a_promotion_by_hand_wants_a_reason(stand: Stand, adapters: list[Artifact]) -> None:
    assert stand("promote", "1").code == 2


def test_a_server_that_was_restarted_is_synced(stand: Stand, adapters: list[Artifact]) -> None:
    stand.place.vllm.serve("seinfeld", stand.place.start)
    ended = stand("sync")
    assert f"{stand.place.vllm.url} serves 'seinfeld' from {stand.place.start}: put right" in ended.err
    assert ended.err.endswith("seinfeld is version 2, as the registry says\n")
    assert stand.serves(adapters[1])
    assert stand("sync").err == "seinfeld is version 2, as the registry says\n"


def test_a_server_that_died_in_a_first_promotion_is_synced(stand: Stand) -> None:
    adapter = stand.trained(0.5)
    stand.decide(adapter)
    vllm = stand.place.vllm
    vllm.before = lambda route, body: setattr(vllm, "dead", bool(body.get("load_inplace")))
    assert "the former adapter cannot be put back" in stand("promote", adapter.key, "--reason", "why not").err
    vllm.before, vllm.dead = lambda route, body: None, False
    vllm.serve("seinfeld", stand.workshop.folder(adapter))
    assert stand("sync").err.endswith("seinfeld is the starting adapter, as the registry says\n")
    assert stand.serves(stand.start)


def test_what_another_place_began_from_is_no_starting_adapter_here(stand: Stand) -> None:
    files = save_adapter(stand.place.folder / "other", 0.1)
    ours = stand.start
    stand.start = stand.workshop.adopt(Stage("sft", 1), {name: files / name for name in (CONFIG, WEIGHTS)})
    stand.register(stand.trained(0.5), place="embedded")
    before = stand.registry
    swap(stand.place.store, before, rolled_back(before, Rollback(by="anna", reason="too rude")))
    assert stand("sync").err.endswith("seinfeld is the starting adapter, as the registry says\n")
    assert stand.serves(ours)


def test_where_no_server_runs_one_is_started_for_a_promotion_by_hand_and_sync_has_nothing_to_do(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started:
        """In the place of the embedded vLLM."""

        base_url = stand.place.vllm.url

        def __init__(self, base: Path, log: Path):
            self.base = base

        def __enter__(self) -> "Started":
            stand.place.vllm.unload({"lora_name": "seinfeld"})  # as one that has just started
            return self

        def __exit__(self, *_: object) -> None: ...

    def save(folder: Path) -> dict[str, Any]:
        save_adapter(folder, 0.25)
        return {}

    monkeypatch.setattr("tasks.place.LocalVLLM", Started)
    base = stand.workshop.adopt(Stage("base", 1), {path.name: path for path in save_base(tmp_path / "base").iterdir()})
    stand.start = stand.workshop.make(Stage("sft", 1), {}, {"base": base}, save)
    adapter = stand.trained(0.5)
    program = partial(stand.call, "adapters")
    embedded = ("--set", f"place.data={stand.place.data}")
    assert program("promote", adapter.key, "--reason", "why not", "--without-gate", *embedded).code == 0
    assert stand.place.vllm.answers_like("seinfeld", stand.workshop.folder(adapter))
    assert program("sync", *embedded).err == "seinfeld is version 1, as the registry says\n"
    assert program("rollback", *embedded).err == "seinfeld is the starting adapter again\n"
