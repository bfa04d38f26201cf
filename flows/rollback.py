"""The way back, from Prefect's UI: the adapter that the current one replaced serves again."""

from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.serving import called, roll_back_current
from nothing_gpt.config import PlaceSettings, Settings
from nothing_gpt.serve.registry import Rollback
from tasks.secrets import secrets_from_blocks


@flow(name="rollback", validate_parameters=True)
def rollback(
    reason: Annotated[str, Field(min_length=1, description="Why the current adapter is taken back; it is recorded.")],
    place: PlaceSettings = PlaceSettings(),
) -> Any:
    """Takes the current adapter back: the one that it replaced is current again, on every server of the place.

    Args:
        reason: Why the current adapter is taken back. The registry keeps it with the run's name.
        place: Where the adapter is served and registered: the place of the run that promoted it. Replaced as a whole.
    """
    with secrets_from_blocks():
        settings = Settings(place=place)
        by = f"Prefect's run {flow_run.name}"
        version = roll_back_current(settings, Rollback(by=by, reason=reason))
    return Completed(message=f"{settings.sampling.model} is {called(version)} again", data=version)
