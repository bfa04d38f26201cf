"""Google Cloud credentials from Prefect's blocks, kept on a real Prefect server."""

from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from prefect.testing.utilities import prefect_test_harness
from prefect_gcp import GcpCredentials, GcsBucket

from nothing_gpt.config import PlaceSettings
from nothing_gpt.errors import FatalError
from tasks.credentials import place_credentials

pytestmark = pytest.mark.prefect


@pytest.fixture(scope="module")
def account() -> dict[str, Any]:
    """A service account's key, as Google gives it out."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return {
        "type": "service_account",
        "project_id": "project",
        "client_email": "trainer@project.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
        "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    }


@pytest.fixture(scope="module", autouse=True)
def blocks(account: dict[str, Any]) -> Iterator[None]:
    """A Prefect server that has a block of each type."""
    with prefect_test_harness():
        credentials = GcpCredentials(service_account_info=account)  # type: ignore[arg-type]
        credentials.save("mine")
        GcsBucket(bucket="bucket", gcp_credentials=credentials).save("mine")
        yield


@pytest.mark.parametrize("block", ["gcp-credentials/mine", "gcs-bucket/mine"])
def test_a_block_gives_its_service_accounts_credentials(block: str, account: dict[str, Any]) -> None:
    credentials = place_credentials(PlaceSettings(gcp_block=block))
    assert credentials.service_account_email == account["client_email"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("mine", "is no block; give gcp-credentials/NAME or gcs-bucket/NAME"),
        ("secret/mine", "is no block; give gcp-credentials/NAME or gcs-bucket/NAME"),
        ("gcp-credentials/typo", "cannot be used (Unable to find block document named typo"),
    ],
)
def test_a_block_that_gives_none_is_one_line(block: str, said: str) -> None:
    with pytest.raises(FatalError) as error:
        place_credentials(PlaceSettings(gcp_block=block))
    assert str(error.value).startswith(f"place.gcp_block: {block} {said}")
    assert "\n" not in str(error.value)
