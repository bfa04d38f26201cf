"""Google Cloud credentials kept in Prefect: a prefect-gcp block by its name."""

from google.auth.credentials import Credentials
from prefect_gcp import GcpCredentials, GcsBucket

from nothing_gpt.errors import FatalError

BLOCKS = {"gcp-credentials": GcpCredentials, "gcs-bucket": GcsBucket}


def block_credentials(block: str) -> Credentials:
    """The credentials of the block TYPE/NAME, where the type is gcp-credentials or gcs-bucket.

    Raises:
        FatalError: there is no such block, or it holds no credentials that can be used.
    """
    kind, _, name = block.partition("/")
    if kind not in BLOCKS or not name:
        raise FatalError(f"place.gcp_block: {block} is no block; give gcp-credentials/NAME or gcs-bucket/NAME")
    try:
        loaded = BLOCKS[kind].load(name)
        holder = loaded.gcp_credentials if isinstance(loaded, GcsBucket) else loaded
        return holder.get_credentials_from_service_account()
    except Exception as error:  # whatever Prefect, its server or google-auth make of it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FatalError(f"place.gcp_block: {block} cannot be used ({reason}); see `prefect block ls`") from None
