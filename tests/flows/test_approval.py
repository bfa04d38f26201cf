"""Who is asked for an approval and where, and what becomes of the answer. A deployment's run is in
`deployments/`."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.exceptions import Pause
from prefect.runtime import flow_run

from flows import approval as asking
from flows.approval import Form, approval, check_askable
from flows.dpo import dpo_pipeline
from nothing_gpt.artifacts import Artifact, Workshop
from nothing_gpt.config import GateSettings, Settings
from nothing_gpt.dpo.gate import Decision, Reason
from nothing_gpt.errors import FatalError, GateFailed
from nothing_gpt.serve.registry import Registry, promoted, read_registry, swap
from tasks.approval import Evidence, answers
from tasks.place import Place
from tests.flows.fakes import Engines, Trainer, engines

REQUIRED = GateSettings(approval="required")
APPROVE, REJECT = "approve\nAda\nfunnier\n", "reject\nAda\nstale jokes\n"


class Terminal(StringIO):
    """What is typed; `before` is called first."""

    before: Callable[[], object] | None = None

    def isatty(self) -> bool:
        return True

    def readline(self, *arguments: Any) -> str:
        if self.before:
            self.before, before = None, self.before
            before()
        return super().readline(*arguments)


@pytest.fixture
def types(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Terminal]:
    """Sits down at a terminal and types."""

    def sit_down(text: str) -> Terminal:
        terminal = Terminal(text)
        monkeypatch.setattr(sys, "stdin", terminal)
        return terminal

    return sit_down


@pytest.fixture
def evidence() -> Evidence:
    candidate, evaluation = Artifact("store", "train", "f1", "d1"), Artifact("store", "evaluate", "f2", "d2")
    return Evidence(candidate, evaluation, Decision((Reason(True, "win rate 0.8"),)), Registry())


def nobody_looks(_: float) -> str:
    raise AssertionError("asked again")


def shown(_: float) -> str:
    return "The candidate passed the gate."


def another(registry: Registry) -> Registry:
    """The registry with one more version."""
    made = {"artifact": "train/x", "fingerprint": "x", "digest": "x"}
    return promoted(registry, name="seinfeld", place="local", metrics={}, reasons=[], **made)


# On a terminal.


def test_without_a_terminal_or_a_deployment_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO())
    with pytest.raises(FatalError, match="no terminal to ask on; start this as a deployment"):
        check_askable(REQUIRED)
    check_askable(GateSettings())
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "d")
    check_askable(REQUIRED)


def test_an_approval_is_recorded_and_stands_for_the_same_evidence(
    workshop: Workshop, evidence: Evidence, types: Callable[[str], Terminal], capsys: pytest.CaptureFixture[str]
) -> None:
    types(APPROVE)
    given = approval(workshop.store, evidence, REQUIRED, shown)
    assert (given.by, given.reason) == ("Ada", "funnier")
    assert "The candidate passed the gate." in capsys.readouterr().out
    assert approval(workshop.store, evidence, REQUIRED, nobody_looks) == given
    (answer,) = answers(workshop.store, evidence)
    assert (answer.candidate, answer.evaluation, answer.replaces) == ("train/f1", "evaluate/f2", None)


def test_a_rejection_says_who_and_why_and_another_run_asks_again(
    workshop: Workshop, evidence: Evidence, types: Callable[[str], Terminal]
) -> None:
    types(REJECT)
    with pytest.raises(GateFailed, match="rejected by Ada: stale jokes"):
        approval(workshop.store, evidence, REQUIRED, shown)
    types(APPROVE)
    assert approval(workshop.store, evidence, REQUIRED, shown).reason == "funnier"
    assert len(answers(workshop.store, evidence)) == 2


def test_whoever_leaves_the_terminal_has_not_answered(
    workshop: Workshop, evidence: Evidence, types: Callable[[str], Terminal]
) -> None:
    types("approve\nAda\n\n")  # no reason
    with pytest.raises(FatalError, match="nobody answered"):
        approval(workshop.store, evidence, REQUIRED, shown)
    assert answers(workshop.store, evidence) == []


def test_other_evidence_is_another_question(evidence: Evidence) -> None:
    first = another(Registry())
    others = [
        evidence,
        replace(evidence, candidate=replace(evidence.candidate, digest="d3")),
        replace(evidence, evaluation=replace(evidence.evaluation, digest="d4")),
        replace(evidence, decision=Decision((Reason(True, "win rate 0.7"),))),
        replace(evidence, registry=first),
        replace(evidence, registry=first.model_copy(update={"current": None})),  # promoted and taken back
    ]
    assert len({other.name for other in others}) == len(others)


# On a deployment.


class Suspending:
    """What Prefect remembers of the present run: its askings, and what was answered."""

    def __init__(self) -> None:
        self._asked: dict[str, dict[str, int]] = {}
        self._answers: dict[tuple[str, str], dict[str, str]] = {}

    @property
    def asked(self) -> dict[str, int]:
        return self._asked.setdefault(flow_run.id, {})

    def read_flow_run(self, _: object) -> Any:
        return SimpleNamespace(empirical_policy=SimpleNamespace(pause_keys=set(self.asked)))

    def suspend(self, wait_for_input: Any, timeout: int, key: str) -> None:
        assert key not in self.asked
        self.asked[key] = timeout
        raise Pause

    def answer(self, **fields: str) -> None:
        self._answers[flow_run.id, f"suspended-{list(self.asked)[-1]}-response"] = fields

    def answers(self, key: str) -> dict[str, str] | None:
        return self._answers.get((flow_run.id, key))

    def __enter__(self) -> "Suspending":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def suspending(monkeypatch: pytest.MonkeyPatch) -> Suspending:
    prefect = Suspending()
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "d")
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "r")
    monkeypatch.setattr(asking, "get_client", lambda sync_client: prefect)
    monkeypatch.setattr(asking, "suspend_flow_run", prefect.suspend)
    monkeypatch.setattr(asking, "read_flow_run_input", prefect.answers)
    return prefect


def test_a_suspended_run_that_begins_again_finds_its_answer(
    workshop: Workshop, evidence: Evidence, suspending: Suspending
) -> None:
    with pytest.raises(Pause):
        approval(workshop.store, evidence, REQUIRED, shown)
    assert list(suspending.asked.values()) == [72 * 3600]
    suspending.answer(decision="approve", by=" Ada ", reason="funnier")
    assert approval(workshop.store, evidence, REQUIRED, nobody_looks).by == "Ada"


def test_a_retry_asks_again_after_a_rejection_and_after_nobody_came(
    workshop: Workshop, evidence: Evidence, suspending: Suspending
) -> None:
    for _ in range(2):  # the first asking expires
        with pytest.raises(Pause):
            approval(workshop.store, evidence, REQUIRED, shown)
    suspending.answer(decision="reject", by="Ada", reason="stale jokes")
    with pytest.raises(GateFailed):
        approval(workshop.store, evidence, REQUIRED, nobody_looks)
    with pytest.raises(Pause):
        approval(workshop.store, evidence, REQUIRED, shown)
    suspending.answer(decision="approve", by="Ada", reason="on second thoughts")
    assert approval(workshop.store, evidence, REQUIRED, nobody_looks).reason == "on second thoughts"


def test_an_answer_is_none_to_what_became_another_question_meanwhile(
    workshop: Workshop, evidence: Evidence, suspending: Suspending
) -> None:
    with pytest.raises(Pause):
        approval(workshop.store, evidence, REQUIRED, shown)
    suspending.answer(decision="approve", by="Ada", reason="better than the starting adapter")
    changed = replace(evidence, registry=another(Registry()))
    with pytest.raises(Pause):
        approval(workshop.store, changed, REQUIRED, shown)
    assert answers(workshop.store, changed) == []


def test_of_two_runs_that_wait_about_the_same_the_last_answer_counts(
    workshop: Workshop, evidence: Evidence, suspending: Suspending, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("r", "s"):
        monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", run)
        with pytest.raises(Pause):
            approval(workshop.store, evidence, REQUIRED, shown)
        suspending.answer(decision="approve" if run == "r" else "reject", by=run, reason="looked at it")
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "r")
    assert approval(workshop.store, evidence, REQUIRED, nobody_looks).by == "r"
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "s")
    with pytest.raises(GateFailed, match="rejected by s"):
        approval(workshop.store, evidence, REQUIRED, nobody_looks)
    for run in ("r", "s"):  # a retry of either
        monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", run)
        with pytest.raises(Pause):
            approval(workshop.store, evidence, REQUIRED, shown)


@pytest.mark.parametrize("damaged", [b"", b'{"decision": "appr', b"\xff"])
def test_a_damaged_answer_is_named_and_nothing_goes_on_without_it(
    workshop: Workshop, evidence: Evidence, types: Callable[[str], Terminal], damaged: bytes
) -> None:
    types(APPROVE)
    approval(workshop.store, evidence, REQUIRED, shown)
    (key,) = workshop.store.list("approvals")
    workshop.store.write(key, damaged)
    with pytest.raises(FatalError, match=rf"{key}: damaged, .*; delete it to be asked again"):
        approval(workshop.store, evidence, REQUIRED, nobody_looks)


def test_a_name_or_a_reason_of_blanks_is_none() -> None:
    for fields in ({"by": " ", "reason": "r"}, {"by": "Ada", "reason": "\n"}):
        with pytest.raises(ValueError, match="pattern"):
            Form.model_validate({"decision": "approve", **fields})


# In the flow.


@pytest.fixture
def place(tmp_path: Path, prefect: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    monkeypatch.setattr(Place, "run", staticmethod(Trainer()))
    with engines(tmp_path) as running:
        yield running


def run(place: Engines) -> Any:
    settings = place.settings(gate__approval="required")
    groups: dict[str, Any] = {name: getattr(settings, name) for name in Settings.model_fields}
    return dpo_pipeline(**groups, return_state=True)


@pytest.mark.prefect
@pytest.mark.timeout(300)
def test_what_was_approved_is_not_promoted_over_a_version_that_came_meanwhile(
    place: Engines, types: Callable[[str], Terminal]
) -> None:
    def meanwhile() -> None:
        registry = read_registry(place.store)
        swap(place.store, registry, another(registry))

    types(APPROVE).before = meanwhile
    state = run(place)
    assert state.is_failed()
    assert "version 1 is current now, and the candidate was compared with the starting adapter; run again" in (
        state.message or ""
    )
    assert place.vllm.answers_like("seinfeld", place.start)
    assert read_registry(place.store).current == 1


@pytest.mark.prefect
@pytest.mark.timeout(300)
def test_the_registry_says_who_approved_and_a_promoted_candidate_is_not_asked_about(
    place: Engines, types: Callable[[str], Terminal], capsys: pytest.CaptureFixture[str]
) -> None:
    types(APPROVE)
    assert run(place).is_completed()
    (version,) = read_registry(place.store).versions
    assert version.approval
    assert (version.approval.by, version.approval.reason) == ("Ada", "funnier")
    assert list(version.lineage)[-1] == "evaluate"
    assert set(version.lineage) == {"prompts", "sft", "generate_pairs", "judge", "pairs", "train", "evaluate"}
    types("")
    assert run(place).is_completed()
    assert len(read_registry(place.store).versions) == 1
