"""How a run of the chain ended, for a gate in CI: its reasons and its report, and whether a new adapter serves.

    python -m flows.outcome RUN_ID

Exit code 0 where the run promoted its adapter, 1 otherwise. Needs Prefect and none of the engines.
"""

import sys
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort

PROMOTED = "Promoted"
"""How the message of a run begins that did."""


def outcome(run_id: UUID) -> tuple[bool, str]:
    """Whether the run promoted its adapter, and what it says: its last state's message, then its report."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run_id).state
        reports: list[Artifact] = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["dpo-report"])),
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])),
            sort=ArtifactSort.CREATED_DESC,
        )
    name, message = (state.name, state.message or "") if state else ("Unknown", "")
    promoted = bool(state and state.is_completed()) and message.startswith(PROMOTED)
    return promoted, "\n\n".join([f"{name}: {message}", *(str(report.data) for report in reports[:1])])


if __name__ == "__main__":
    passed, text = outcome(UUID(sys.argv[1]))
    print(text)
    sys.exit(0 if passed else 1)
