"""Orders for another machine: what they hold, what is refused, and how the base model gets there. The training is a
fake; `tests/chain/test_job.py` has the real one.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from nothing_gpt.artifacts import Artifact, Stage, Workshop, lease
from nothing_gpt.bases import Base, known_base
from nothing_gpt.config import TrainingSettings
from nothing_gpt.dpo import order
from nothing_gpt.dpo.order import STAGE, fingerprinted, fulfil, train_elsewhere
from nothing_gpt.errors import FatalError, TransientError
from tests.fake_vllm import save_adapter, save_base

pytestmark = pytest.mark.every_store


@dataclass
class Machine:
    """The other machine: does what it is ordered with a training that writes down which base it was given."""

    uri: str
    folder: Path
    bases: list[Path] = field(default_factory=list)

    def __call__(self, fingerprint: str) -> None:
        fulfil(self.uri, fingerprint, self.folder, self.train)

    def train(
        self, workshop: Workshop, pairs: Artifact, adapter: Artifact, base: Base, settings: TrainingSettings
    ) -> Artifact:
        def build(folder: Path) -> Mapping[str, Any]:
            self.bases.append(Path(base.location))
            (folder / "trained").write_text("yes")
            return {}

        return workshop.make(STAGE, fingerprinted(settings, base), {"pairs": pairs, "adapter": adapter}, build)


@dataclass
class Ordering:
    """The flow's side."""

    workshop: Workshop
    inputs: dict[str, Artifact]
    base: Base
    settings: TrainingSettings = TrainingSettings()

    def order(self, ask: Any) -> Artifact:
        return train_elsewhere(self.workshop, **self.inputs, base=self.base, settings=self.settings, ask=ask)


@pytest.fixture
def flow(workshop: Workshop, tmp_path: Path) -> Ordering:
    adapter = save_adapter(tmp_path / "sft", 0.25)
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text("{}")
    inputs = {
        "pairs": workshop.adopt(Stage("pairs", 1), {name: tmp_path / name for name in ("train.jsonl", "val.jsonl")}),
        "adapter": workshop.adopt(Stage("sft", 1), {path.name: path for path in adapter.iterdir()}),
    }
    base = save_base(tmp_path / "base")
    (base / "pytorch_model.bin").write_bytes(b"weights of another form")
    (base / "optimizer.pt").write_text("no part of a model")
    return Ordering(workshop, inputs, known_base(str(base), None))


@pytest.fixture
def machine(flow: Ordering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other" / "cache"))
    return Machine(flow.workshop.store.uri, tmp_path / "other")


# What is ordered is done, once.


def test_what_is_ordered_is_made_and_the_second_time_found(flow: Ordering, machine: Machine) -> None:
    made = flow.order(machine)
    assert (made.stage, made.reused) == ("train", False)
    assert flow.workshop.file(made, "trained").read_text() == "yes"
    again = flow.order(machine)
    assert (again.digest, again.reused, len(machine.bases)) == (made.digest, True, 1)


def test_a_flow_that_was_killed_after_its_order_orders_the_same_again(flow: Ordering, machine: Machine) -> None:
    def killed(fingerprint: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flow.order(killed)
    (key,) = flow.workshop.store.list("jobs")
    order = flow.workshop.store.read(key)
    flow.order(machine)
    assert list(flow.workshop.store.list("jobs")) == [key]
    assert flow.workshop.store.read(key) == order


def test_an_artifact_that_was_damaged_is_ordered_again(flow: Ordering, machine: Machine) -> None:
    made = flow.order(machine)
    flow.workshop.store.write(f"{made.key}/trained", b"no")
    assert not flow.order(machine).reused
    assert flow.workshop.file(made, "trained").read_text() == "yes"


def test_a_job_that_ended_well_without_an_artifact_is_an_error(flow: Ordering) -> None:
    with pytest.raises(FatalError, match="ended with exit code 0, but there is no whole artifact"):
        flow.order(lambda fingerprint: None)


@pytest.mark.contended
def test_of_two_machines_that_are_given_the_same_order_one_trains(flow: Ordering, machine: Machine) -> None:
    def ask(fingerprint: str) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(machine, [fingerprint] * 2))

    flow.order(ask)
    assert len(machine.bases) == 1


def test_the_lease_is_the_other_machine_s(flow: Ordering, machine: Machine) -> None:
    seen: list[str] = []

    def ask(fingerprint: str) -> None:
        with lease(flow.workshop.store, f"leases/train-{fingerprint}"):
            seen.append(fingerprint)
        machine(fingerprint)

    flow.order(ask)
    assert len(seen) == 1


def test_nothing_secret_is_in_an_order(flow: Ordering, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "5ecret")
    made = flow.order(machine)
    data = flow.workshop.store.read(f"jobs/{made.fingerprint}/order.json") or b""
    assert set(json.loads(data)) == {"pairs", "adapter", "base", "training"}
    assert b"5ecret" not in data


# What is refused.


def test_an_image_of_another_version_refuses_and_says_both_fingerprints(
    flow: Ordering, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older_image(fingerprint: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(order, "STAGE", Stage("train", 1))
            machine(fingerprint)

    with pytest.raises(FatalError) as error:
        flow.order(older_image)
    (key,) = flow.workshop.store.list("jobs")
    assert f"image and flow are of different versions: the flow wants train/{key.split('/')[1]}, this" in str(
        error.value
    )
    assert str(error.value).count("train/") == 2
    assert machine.bases == []


@pytest.mark.parametrize("change", [lambda o: o["training"].update(new_setting=1), lambda o: o.pop("pairs")])
def test_an_order_that_is_not_understood_is_of_another_version(flow: Ordering, machine: Machine, change: Any) -> None:
    def changed(fingerprint: str) -> None:
        key = f"jobs/{fingerprint}/order.json"
        content = json.loads(flow.workshop.store.read(key) or b"")
        change(content)
        flow.workshop.store.write(key, json.dumps(content).encode())
        machine(fingerprint)

    with pytest.raises(FatalError, match=r"cannot be understood .*: image and flow are of different versions"):
        flow.order(changed)


def test_without_an_order_nothing_is_done(flow: Ordering, machine: Machine) -> None:
    with pytest.raises(FatalError, match=r"jobs/0123456789abcdef/order\.json: no such order"):
        machine("0123456789abcdef")


def test_an_input_that_is_gone_is_named(flow: Ordering, machine: Machine) -> None:
    def without(fingerprint: str) -> None:
        flow.workshop.store.delete(f"{flow.inputs['pairs'].key}/val.jsonl")
        machine(fingerprint)

    with pytest.raises(FatalError, match=f"{flow.inputs['pairs'].key}: not there, or damaged"):
        flow.order(without)


# The base model.


def test_a_base_that_is_a_folder_goes_to_the_store_once_and_comes_from_there(flow: Ordering, machine: Machine) -> None:
    flow.order(machine)
    key = f"bases/{flow.base.identity}"
    assert list(flow.workshop.store.list(key)) == [
        f"{key}/{n}" for n in ("COMPLETE", "config.json", "model.safetensors", "pytorch_model.bin")
    ]
    (brought,) = machine.bases
    assert brought != Path(flow.base.location)
    assert known_base(str(brought), None).identity == flow.base.identity
    flow.workshop.store.write(f"{key}/extra", b"")
    replace(flow, settings=TrainingSettings(beta=0.2)).order(machine)
    assert flow.workshop.store.read(f"{key}/extra") == b""


def test_a_base_that_changed_since_the_run_began_is_refused(flow: Ordering, machine: Machine) -> None:
    (Path(flow.base.location) / "config.json").write_text('{"hidden_size": 1}')
    with pytest.raises(FatalError, match="has changed since the run began"):
        flow.order(machine)
    assert list(flow.workshop.store.list("bases")) == []


@pytest.mark.parametrize("damage", ["gone", "other"])
def test_a_base_that_is_not_whole_in_the_store_is_not_trained_on_and_put_there_again(
    flow: Ordering, machine: Machine, damage: str
) -> None:
    def damaged(fingerprint: str) -> None:
        key = f"bases/{flow.base.identity}/model.safetensors"
        flow.workshop.store.delete(key)
        if damage == "other":
            flow.workshop.store.write(key, b"other")
        machine(fingerprint)

    with pytest.raises(FatalError, match="the base model is not whole there"):
        flow.order(damaged)
    assert flow.order(machine).stage == "train"


@pytest.fixture
def hub(flow: Ordering, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A hub with the base model; what was asked of it."""
    asked: list[tuple[str, str]] = []

    def download(name: str, *, revision: str, local_dir: Path, allow_patterns: list[str], **_: Any) -> None:
        asked.append((name, revision))
        save_base(local_dir)
        (local_dir / ".cache").mkdir()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    flow.base = Base("some/model", "some/model@c0ffee", "c0ffee")
    return asked


def test_a_hub_s_base_is_downloaded_once_at_its_commit_and_then_kept(
    flow: Ordering, machine: Machine, hub: list[tuple[str, str]]
) -> None:
    flow.order(machine)
    replace(flow, settings=TrainingSettings(beta=0.2)).order(machine)
    assert hub == [("some/model", "c0ffee")]
    assert [(path / "config.json").is_file() for path in machine.bases] == [True, True]
    assert "bases/some--model@c0ffee/COMPLETE" in list(flow.workshop.store.list("bases"))


def answers(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "http://hub"))


@pytest.mark.parametrize(
    ("failure", "kind", "said"),
    [
        (lambda: RepositoryNotFoundError("no such repository", response=answers(404)), FatalError, "HF_TOKEN"),
        (lambda: HfHubHTTPError("sign in", response=answers(401)), FatalError, "HF_TOKEN"),
        (lambda: HfHubHTTPError("busy", response=answers(503)), TransientError, "cannot be downloaded now"),
        (lambda: httpx2.ConnectError("Connection refused"), TransientError, "cannot be downloaded now"),
    ],
)
def test_a_hub_that_refuses_or_fails_is_one_line(
    flow: Ordering,
    machine: Machine,
    hub: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    failure: Any,
    kind: type[Exception],
    said: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(kind, match=said) as error:
        flow.order(machine)
    assert "\n" not in str(error.value)
    assert list(flow.workshop.store.list("bases")) == []
    assert not list(flow.workshop.store.list("leases"))
