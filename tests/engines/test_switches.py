"""A real vLLM changes what its stable name means: under requests without a pause, and where it is killed half-way."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import httpx
import pytest

from nothing_gpt.adapters import CONFIG, WEIGHTS, adapter_digest
from nothing_gpt.artifacts import Stage, Workshop
from nothing_gpt.embedded.serving import LocalVLLM
from nothing_gpt.errors import TransientError
from nothing_gpt.serve.promote import Candidate, promote, roll_back
from nothing_gpt.serve.registry import Approval, Registry, Rollback, read_registry
from nothing_gpt.serve.switch import Server, versioned_name
from nothing_gpt.store import open_store
from nothing_gpt.vllm_admin import VLLM
from tests.chain.processes import Command
from tests.engines.conftest import marked_processes

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

NAME = "seinfeld"
PROMPT = [{"role": "user", "content": "What is the deal with soup? " * 12}]
APPROVAL = Approval(by="anna", reason="a test", at=0)  # which promotes also what was taken back
ROLLBACK = Rollback(by="anna", reason="a test", at=0)


@dataclass(frozen=True)
class Stand:
    """A data folder, the adapters `a`, `b` and `c` in its store, and a server that serves `c`, the starting one."""

    data: Path
    live: Server
    workshop: Workshop
    folders: dict[str, Path]

    def promote(self, adapter: str) -> None:
        folder, current = self.folders[adapter], self.registry.current
        candidate = Candidate(folder, f"sft/{folder.name}", folder.name, "local", {}, [], APPROVAL)
        promote(self.workshop, candidate, self.folders["c"], self.live, current)

    def roll_back(self) -> None:
        roll_back(self.workshop, ROLLBACK, self.folders["c"], self.live)

    @property
    def registry(self) -> Registry:
        return read_registry(self.workshop.store)

    @property
    def served(self) -> str:
        """The adapter that the stable name says it comes from."""
        return next(name for name, folder in self.folders.items() if self.live.root == str(folder))


@pytest.fixture
def stand(server: LocalVLLM, admin: VLLM, models: Path, tmp_path: Path) -> Stand:
    data = tmp_path / "data"
    workshop = Workshop(open_store(str(data / "store")), data / "work")
    stage = Stage("sft", 1)
    folders = {
        name: workshop.folder(workshop.adopt(stage, {file: models / name / file for file in (CONFIG, WEIGHTS)}))
        for name in ("a", "b", "c")
    }
    admin.load(NAME, str(folders["c"]))
    return Stand(data, Server(server.base_url, NAME, models / "base"), workshop, folders)


Answer = dict[str, float]
"""The likeliest first tokens of a greedy answer, with log-probabilities, which batches of other sizes hardly move."""


def first_tokens(server: LocalVLLM, model: str) -> Answer:
    body = {"model": model, "messages": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    response = httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=120)
    response.raise_for_status()
    likely = response.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {token["token"]: token["logprob"] for token in likely}


def distance(one: Answer, other: Answer) -> float:
    return max(abs(logprob - other.get(token, -100.0)) for token, logprob in one.items())


@dataclass
class Traffic:
    """Requests to `seinfeld` without a pause: each one's answer, and how many switches had returned when it was
    sent."""

    server: LocalVLLM
    switches: int = 0
    answers: list[tuple[int, Answer]] = field(default_factory=list)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                sent = self.switches
                self.answers.append((sent, first_tokens(self.server, NAME)))

        with ThreadPoolExecutor() as pool:
            client = pool.submit(ask)
            try:
                yield
            finally:
                stop.set()
            client.result()  # raises what a request failed with

    def switched(self) -> None:
        """A switch has returned; returns once some requests were sent after it and answered."""
        self.switches += 1
        deadline = time.monotonic() + 60
        while sum(sent == self.switches for sent, _ in list(self.answers)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)


def test_through_20_promotions_and_5_rollbacks_no_request_fails_and_none_is_answered_by_a_former_adapter(
    server: LocalVLLM, admin: VLLM, stand: Stand
) -> None:
    for name, folder in stand.folders.items():
        admin.load(name, str(folder))
    own = {name: first_tokens(server, name) for name in stand.folders}
    assert min(distance(own[one], own[other]) for one, other in ("ab", "bc", "ca")) > 1
    serving, seconds = ["c"], []
    with (traffic := Traffic(server)).flowing():
        for number in range(25):
            started = time.monotonic()
            if number % 5 == 4:
                stand.roll_back()
            else:
                stand.promote("b" if serving[-1] == "a" else "a")
            seconds.append(time.monotonic() - started)
            serving.append(stand.served)
            traffic.switched()
    assert len(stand.registry.versions) == 20
    assert all(one != other for one, other in pairwise(serving))
    answered = [(sent, min(own, key=lambda name: distance(own[name], answer))) for sent, answer in traffic.answers]
    for sent, name in answered:
        assert name in serving[sent : sent + 2]  # the next one's too: a switch may be at work
    assert {sent for sent, name in answered if name == serving[sent]} >= set(range(1, 26))
    print(f"{len(answered)} answers; a switch took {median(seconds):.2f} s, at most {max(seconds):.2f} s")


def test_where_vllm_is_killed_in_mid_promotion_the_former_version_stays_and_sync_has_it_served_again(
    server: LocalVLLM, admin: VLLM, stand: Stand, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.promote("a")
    load = VLLM.load

    def load_or_die(self: VLLM, name: str, path: str, in_place: bool = False) -> None:
        """Dies once the candidate answers under its versioned name, and as the stable one is to become it."""
        if in_place and marked_processes():
            assert versioned_name(NAME, adapter_digest(stand.folders["b"])) in self.models()
            for process in marked_processes():
                os.kill(process, signal.SIGKILL)
        load(self, name, path, in_place)

    monkeypatch.setattr(VLLM, "load", load_or_die)
    with pytest.raises(TransientError) as died:
        stand.promote("b")
    monkeypatch.undo()
    error = str(died.value)
    assert error.startswith("nothing answers at ")
    assert "is vLLM running there?; and the former adapter cannot be put back: nothing answers at " in error
    assert "\n" not in error
    assert stand.registry.current == 1

    server.__exit__()
    server.__enter__()
    assert list(admin.models()) == ["tiny"]
    place = {"kind": "local", "data": stand.data, "serve_url": server.base_url, "base_model": models / "base",
             "sft_adapter": models / "c"}  # fmt: skip
    options = [part for name, value in place.items() for part in ("--set", f"place.{name}={value}")]
    sync = Command("adapters", "sync", *options, log=tmp_path / "sync.log")
    assert sync.wait() == 0, sync.output
    assert f"{server.base_url} does not serve '{NAME}': put right" in sync.output
    assert f"{NAME} is version 1, as the registry says" in sync.output
    assert stand.served == "a"

    stand.promote("b")
    assert (stand.served, stand.registry.current) == ("b", 2)
