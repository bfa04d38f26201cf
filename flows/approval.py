"""A person's approval of what passed the gate: asked for in Prefect's form, or on the terminal.

A deployment's run is suspended: its process ends, its place is free, and once there is an answer a worker starts it
again, which the store brings back here within seconds. Paused, it would hold its process, and go on beside another run.
"""

import getpass
import sys
import time
from collections.abc import Callable
from typing import Literal

from prefect import suspend_flow_run
from prefect.client.orchestration import get_client
from prefect.input import RunInput, keyset_from_paused_state, read_flow_run_input
from prefect.runtime import deployment, flow_run
from prefect.states import Suspended
from pydantic import Field
from rich.console import Console
from rich.markdown import Markdown
from rich.prompt import Prompt

from nothing_gpt.config import GateSettings
from nothing_gpt.errors import FatalError, GateFailed
from nothing_gpt.serve.registry import Approval
from nothing_gpt.store import Store
from tasks.approval import Answer, Evidence, answers, record

Describe = Callable[[float], str]
"""Given until when is waited (Unix time, s), what the person is shown, as Markdown."""


class Form(RunInput):
    """What is asked."""

    decision: Literal["approve", "reject"] = Field(
        description="approve: the candidate is put into service. reject: the run fails, and what is served stays."
    )
    by: str = Field(pattern=r"\S", max_length=100, description="Your name; it is kept with the decision.")
    reason: str = Field(
        pattern=r"\S", max_length=1000, description="Why; it is kept with the decision and shown in the report."
    )


def check_askable(settings: GateSettings) -> None:
    """Raises FatalError where an approval is required and nobody could be asked."""
    if settings.approval == "required" and not (deployment.id or sys.stdin.isatty()):
        raise FatalError(
            "gate.approval: required, but there is no terminal to ask on; start this as a deployment "
            "(scripts/run-deployment), or give --set gate.approval=off"
        )


def approval(store: Store, evidence: Evidence, settings: GateSettings, describe: Describe) -> Approval:
    """The approval of this very evidence, given before or now.

    Raises:
        GateFailed: it was rejected.
        FatalError: nobody answered on the terminal.
    """
    run, given = str(flow_run.id), answers(store, evidence)
    for answer in given:
        if answer.decision == "approve":
            return answer.approval
    rejected = sum(answer.run == run for answer in given)  # so often in this run, whose retry asks again
    if deployment.id:
        form = _suspended(f"{evidence.name}-{rejected}", settings.approval_hours * 3600, describe)
    else:
        form = _on_terminal(settings.approval_hours * 3600, describe)
    answer = Answer(
        decision=form.decision,
        approval=Approval(by=form.by.strip(), reason=form.reason.strip(), at=time.time()),
        run=run,
        candidate=evidence.candidate.key,
        evaluation=evidence.evaluation.key,
        replaces=evidence.registry.current,
    )
    record(store, evidence, f"{run}-{rejected}", answer)
    if answer.decision == "reject":
        raise GateFailed(f"approval: rejected by {answer.approval.by}: {answer.approval.reason}")
    return answer.approval


def _suspended(asking: str, seconds: float, describe: Describe) -> Form:
    """The form as it was filled in; where it was not yet, this ends the process. One that expired is asked anew."""
    with get_client(sync_client=True) as client:
        asked = client.read_flow_run(flow_run.id).empirical_policy.pause_keys or set()
    times = sum(key.startswith(f"{asking}-") for key in asked)
    keys = keyset_from_paused_state(Suspended(pause_key=f"{asking}-{times}"))
    if filled_in := read_flow_run_input(keys["response"]):
        return Form.model_validate(filled_in)
    form = Form.with_initial_data(description=describe(time.time() + seconds))
    return suspend_flow_run(wait_for_input=form, timeout=int(seconds), key=f"{asking}-{times + 1}")


def _on_terminal(seconds: float, describe: Describe) -> Form:
    terminal = Console()
    terminal.print(Markdown(describe(time.time() + seconds)))
    try:
        decision = Prompt.ask("decision", choices=["approve", "reject"])
        by = Prompt.ask("by", default=getpass.getuser())
        while not (reason := Prompt.ask("reason")).strip():
            pass
    except EOFError:
        raise FatalError("approval: nobody answered; what is finished is kept; run again to be asked again") from None
    return Form.model_validate({"decision": decision, "by": by, "reason": reason})
