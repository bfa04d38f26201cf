"""What deployments stand on at a Prefect server: work pools, concurrency limits, automations.

    PREFECT_API_URL=... python -m flows.provision

Made once, and brought up to date by each further call. The slots of a limit, which a person may have changed in the UI,
stay. The one that `scale.judge_limit` names is not made: its rate is your provider's. Runs are reported by the block
`slack-webhook/nothing-gpt` or `webhook/nothing-gpt`, where there is one.
"""

import json
import sys
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from nothing_gpt.errors import exits_cleanly
from nothing_gpt.progress import say

LIMITS = {"endpoint": 1, "judge": 1, "gpu": 1}
"""How many stages may use each at once. A stage already bounds what it sends; two would send twice as much."""
FLOWS = ["dpo-pipeline", "dpo-sweep"]
"""Those whose runs are watched."""
HEARTBEAT_SECONDS = 30
DEAD_AFTER = timedelta(seconds=90)
LATE_FOR = timedelta(hours=1)
_TERMINAL = ("Completed", "Failed", "Cancelled", "Crashed")


def provision(client: SyncPrefectClient) -> None:
    """Makes what is missing and brings the rest up to date."""
    provision_limits(client)
    _pool(client, "local", sys.executable)
    _pool(client, "gke", "python")  # that of the worker's image
    for automation in automations(client):
        found = client.read_automations_by_name(automation.name)
        if not found:
            client.create_automation(automation)
        # An update forgets the runs it watches, of which one may just have died.
        elif AutomationCore.model_validate(found[0].model_dump()) != automation:
            client.update_automation(found[0].id, automation)


def provision_limits(client: SyncPrefectClient) -> None:
    """The concurrency limits, without which no stage that wants a slot runs."""
    for name, slots in LIMITS.items():
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))


def free_slots(client: SyncPrefectClient) -> None:
    """For a server whose former runs have all died: the slots that they held would be free after a minute only."""
    for name in LIMITS:
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=0))


def automations(client: SyncPrefectClient) -> list[AutomationCore]:
    """A run whose process is gone, and one that no worker takes, become Crashed; a crashed one is reported."""
    beat = "heartbeat"
    made = [
        _automation(
            "a dead run is marked",
            _trigger([beat, "Suspended", *_TERMINAL], after=[beat], within=DEAD_AFTER),
            _crash("Its process died or lost its machine; Retry goes on where it stopped."),
        ),
        _automation(
            "a late run is marked",
            _trigger(["Pending", "Running", *_TERMINAL], after=["Late"], within=LATE_FOR),
            _crash("No worker took it for an hour; start one and press Retry."),
        ),
    ]
    if report := _report(client):
        made.append(_automation("a crashed run is reported", _trigger(["Crashed"]), report))
    return made


def _automation(name: str, trigger: EventTrigger, action: Any) -> AutomationCore:
    return AutomationCore(name=f"nothing-gpt: {name}", trigger=trigger, actions=[action])


def _trigger(expect: list[str], after: Iterable[str] = (), within: timedelta = timedelta(0)) -> EventTrigger:
    """Fires where a run does what is expected; after something else, where it does not within the time."""
    return EventTrigger(
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOWS},
        after={f"prefect.flow-run.{event}" for event in after},
        expect={f"prefect.flow-run.{event}" for event in expect},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive if after else Posture.Reactive,
        threshold=1,
        within=within,
    )


def _crash(message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState.model_validate({"state": StateType.CRASHED, "message": message})


def _report(client: SyncPrefectClient) -> SendNotification | CallWebhook | None:
    """The action that tells people, by whichever block there is."""
    text = "{{ flow_run.name }} of {{ flow.name }} crashed: {{ flow_run.state.message }}"
    for kind in ("slack-webhook", "webhook"):
        try:
            block = client.read_block_document_by_name("nothing-gpt", kind).id
        except ObjectNotFound:
            continue
        if kind == "webhook":
            return CallWebhook(block_document_id=block, payload=json.dumps({"text": text}))
        return SendNotification(block_document_id=block, subject="Nothing-GPT", body=text)
    return None


def _pool(client: SyncPrefectClient, name: str, python: str) -> None:
    template = _beside_the_worker(python)
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    else:
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


def _beside_the_worker(python: str) -> dict[str, Any]:
    """Runs as children of the worker, in its process group: they end with it, however it ends."""
    template = ProcessWorker.get_default_base_job_template()
    properties = template["variables"]["properties"]
    properties["command"]["default"] = f"{python} -m prefect.engine"
    properties["env"]["default"] = {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_CLIENT_MAX_RETRIES": "8",  # in eight minutes: a run outlives a restart of its server
    }
    return template


@exits_cleanly
def main() -> None:
    with get_client(sync_client=True) as client:
        provision(client)
        say(f"work pools, limits and automations are at {client.api_url}")


if __name__ == "__main__":
    main()
