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
    """The approval of this very evidence, given before or now. What was answered last counts.

    Raises:
        GateFailed: it was rejected.
        FatalError: nobody answered on the terminal, or an answer in the store is damaged.
    """
    run, given = str(flow_run.id), answers(store, evidence)
    answered = sum(answer.run == run for answer in given)  # so often in this run, whose retry asks again
    asking, seconds = f"{evidence.name}-{answered}", settings.approval_hours * 3600
    form = _filled_in(asking) if deployment.id else None
    if form is None and given and given[-1].decision == "approve":
        return given[-1].approval
    if form is None:
        form = _suspended(asking, seconds, describe) if deployment.id else _on_terminal(seconds, describe)
    answer = Answer(
        decision=form.decision,
        approval=Approval(by=form.by.strip(), reason=form.reason.strip(), at=time.time()),
        run=run,
        candidate=evidence.candidate.key,
        evaluation=evidence.evaluation.key,
        replaces=evidence.registry.current,
    )
    record(store, evidence, f"{run}-{answered}", answer)
    if answer.decision == "reject":
        raise GateFailed(f"approval: rejected by {answer.approval.by}: {answer.approval.reason}")
    return answer.approval


def _filled_in(asking: str) -> Form | None:
    """The form that this run showed last and that was filled in while it was suspended."""
    keys = keyset_from_paused_state(Suspended(pause_key=f"{asking}-{_shown(asking)}"))
    filled_in = read_flow_run_input(keys["response"])
    return Form.model_validate(filled_in) if filled_in else None


def _suspended(asking: str, seconds: float, describe: Describe) -> Form:
    """Shows the form, and ends the process. One that expired is shown anew."""
    form = Form.with_initial_data(description=describe(time.time() + seconds))
    return suspend_flow_run(wait_for_input=form, timeout=int(seconds), key=f"{asking}-{_shown(asking) + 1}")


def _shown(asking: str) -> int:
    """How often this run has shown the form."""
    with get_client(sync_client=True) as client:
        keys = client.read_flow_run(flow_run.id).empirical_policy.pause_keys or set()
    return sum(key.startswith(f"{asking}-") for key in keys)


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
