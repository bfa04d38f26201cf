"""A deployment's run that waits for a person."""

import json
import subprocess
import sys
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse

from flows.record import last_run
from nothing_gpt.serve.registry import read_registry
from tests.chain.processes import REPOSITORY
from tests.flows.deployed import (
    Workers,
    ended,
    eventually,
    options,
    parameters,
    retry,
)
from tests.flows.fakes import Engines


def waits(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    """The run once it is suspended and its form is there."""

    def look() -> FlowRun | None:
        found = client.read_flow_run(run.id)
        keys = found.state.state_details.run_input_keyset if found.state and found.state.is_paused() else None
        inputs = client.filter_flow_run_input(run.id, keys["description"], limit=1, exclude_keys=set()) if keys else []
        return found if inputs else None

    return eventually(look)


@pytest.mark.prefect
@pytest.mark.timeout(900)
def test_a_run_that_waits_for_approval_leaves_its_place_and_goes_on_as_it_is_answered(
    client: SyncPrefectClient,
    workers: Workers,
    fakes: dict[str, DeploymentResponse],
    place: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHON", sys.executable)
    embedded = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[fakes["embedded"].id]))
    before = {run.id for run in client.read_flow_runs(flow_run_filter=embedded)}
    wanted = options(place, gate__approval="required")
    script = subprocess.Popen(
        ["scripts/run-deployment", "dpo-pipeline/embedded", *wanted],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    (run,) = eventually(
        lambda: [run for run in client.read_flow_runs(flow_run_filter=embedded) if run.id not in before]
    )
    waiting = waits(client, run)
    assert waiting.state
    keys: Any = waiting.state.state_details.run_input_keyset
    form = json.loads(client.read_flow_run_input(run.id, keys["description"]))
    assert "May it replace the starting adapter?" in form
    summary = json.loads(place.store.read(f"{last_run(place.store)}/summary.json") or b"{}")
    assert form.count("| starting adapter | candidate |") == min(10, summary["win_rate"]["n"])
    assert summary["waits_until"]

    # Another run of the deployment, of which one may run at once, does not find its place taken. Nobody answers it.
    soon = parameters(place, gate__approval="required", gate__approval_hours=0.001)
    second = ended(client, client.create_flow_run_from_deployment(fakes["embedded"].id, parameters=soon))
    assert (second.state_name, second.state and second.state.message) == (
        "Failed", "The flow was paused and never resumed."
    )  # fmt: skip

    answer = {"decision": "reject", "by": "Ada", "reason": "stale jokes"}
    assert client.resume_flow_run(run.id, run_input={"decision": "approve"}).status.value == "REJECT"  # by whom?
    client.resume_flow_run(run.id, run_input=answer)
    printed, _ = script.communicate(timeout=200)
    assert script.returncode == 1, printed
    assert "Failed: approval: rejected by Ada: stale jokes" in printed
    assert "Not promoted: the gate passed, but it was not approved" in printed
    assert read_registry(place.store).versions == []

    retry(client, run)
    waits(client, run)
    client.resume_flow_run(run.id, run_input=answer | {"decision": "approve", "reason": "they grew on me"})
    assert ended(client, run).state_name == "Completed"
    (version,) = read_registry(place.store).versions
    assert version.approval
    assert (version.approval.by, version.approval.reason) == ("Ada", "they grew on me")
    assert place.vllm.answers_like("seinfeld", place.store.root / version.artifact)
