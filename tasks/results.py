"""Where Prefect keeps what a run returned, its summary: in the bucket, if the place keeps everything there.

So other machines, and whoever looks at the run in Prefect, find it with the run: `flow_run.state.result()`. Nothing
of ours reads it: `nothing-gpt report` shows the summary that is in the store. Run against our fake of Cloud Storage;
with a service account's block and with Application Default Credentials it is not, for want of an account.
"""

import os
from hashlib import sha256
from typing import Any

from prefect.results import ResultStore
from prefect.serializers import CompressedJSONSerializer

from nothing_gpt.config import PlaceSettings
from nothing_gpt.progress import say
from nothing_gpt.workshops import IN_BUCKET
from tasks.credentials import credentials_block

BLOCK = "nothing-gpt-results"
FOLDER = "prefect"


def kept(place: PlaceSettings, result: Any) -> Any:
    """A flow's result as its state is to have it: kept in the place's bucket, if that is where all is kept, else as it
    is. Where the bucket cannot be written in Prefect's way, which asks for the right storage.buckets.get too, that is
    said: a run must not fail by it at its very end.

    Done in the flow, and not by options of it: so it holds for a deployment's runs, whose bucket is a parameter.
    """
    if place.kind not in IN_BUCKET or place.bucket is None:
        return result
    # Extras, and a second to import.
    from google.auth.credentials import AnonymousCredentials
    from prefect_gcp import GcpCredentials, GcsBucket

    class NoCredentials(GcpCredentials):
        """For the emulator, which asks for none: Prefect's own class refuses to have none."""

        _block_type_name = "No GCP credentials"

        def get_credentials_from_service_account(self) -> Any:
            return AnonymousCredentials()

    name, _, prefix = place.bucket.removeprefix("gs://").partition("/")
    try:
        if place.gcp_block:
            credentials = credentials_block(place.gcp_block)
        elif "STORAGE_EMULATOR_HOST" in os.environ:
            credentials = NoCredentials(project="emulator")
        else:
            credentials = GcpCredentials()
        folder = "/".join(part for part in (prefix.strip("/"), FOLDER) if part)
        block = GcsBucket(bucket=name, bucket_folder=folder, gcp_credentials=credentials)
        # Of each bucket its own, on one server: runs find their results by the block.
        block.save(f"{BLOCK}-{sha256(place.bucket.encode()).hexdigest()[:8]}", overwrite=True)
        # Compressed, as Prefect takes plain JSON with a key `data`, such as the summary, for one of an older version.
        store = ResultStore(result_storage=block, serializer=CompressedJSONSerializer())
        record = store.create_result_record(result)
        store.persist_result_record(record)
        return record
    except Exception as error:  # whatever Prefect, its server or Google's libraries make of it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        say(f"Prefect keeps no results in {place.bucket} ({reason}); the report is kept all the same")
        return result
