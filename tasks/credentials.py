"""Google Cloud credentials kept in Prefect: a prefect-gcp block by its name."""

from typing import TYPE_CHECKING

from nothing_gpt.config import PlaceSettings
from nothing_gpt.errors import FatalError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from prefect_gcp import GcpCredentials


def place_credentials(place: PlaceSettings) -> "Credentials | None":
    """The credentials of the block that the settings name; None where they name none, and the default ones are meant.

    Raises:
        FatalError: as `credentials_block`.
    """
    return credentials_block(place.gcp_block).get_credentials_from_service_account() if place.gcp_block else None


def credentials_block(block: str) -> "GcpCredentials":
    """The block TYPE/NAME, where the type is gcp-credentials or gcs-bucket; of the latter the credentials.

    Raises:
        FatalError: there is no such block, or it holds no credentials that can be used.
    """
    try:
        from prefect_gcp import GcpCredentials, GcsBucket  # an extra, and a second to import
    except ModuleNotFoundError as error:
        raise FatalError(f"place.gcp_block: needs the package {error.name}; pip install 'nothing-gpt[gcp]'") from None
    blocks = {"gcp-credentials": GcpCredentials, "gcs-bucket": GcsBucket}
    kind, _, name = block.partition("/")
    if kind not in blocks or not name:
        raise FatalError(f"place.gcp_block: {block} is no block; give gcp-credentials/NAME or gcs-bucket/NAME")
    try:
        loaded = blocks[kind].load(name)
        holder = loaded.gcp_credentials if isinstance(loaded, GcsBucket) else loaded
        holder.get_credentials_from_service_account()
        return holder
    except Exception as error:  # whatever Prefect, its server or google-auth make of it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FatalError(f"place.gcp_block: {block} cannot be used ({reason}); see `prefect block ls`") from None
