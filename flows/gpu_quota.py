"""The doctor's look at the project's quota of GPUs in the cluster's region, as Compute Engine has it.

Too small a quota refuses no Job: its node never comes. One number is wanted, so it is asked for by the REST API itself
(compute.regions.get, which roles/compute.viewer allows); where that cannot be asked, the finding says so. The limit of
the whole project, GPUS_ALL_REGIONS, is not looked at.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import google.auth
import requests
from google.api_core.exceptions import GoogleAPICallError, from_http_response
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession

from flows.findings import Finding, within_limit
from nothing_gpt.errors import NothingGPTError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

COMPUTE = "https://compute.googleapis.com/compute/v1"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
ACCELERATOR = "cloud.google.com/gke-accelerator"
SPOT = "cloud.google.com/gke-spot"

Credentialed = Callable[[], "Credentials | None"]
"""Gets credentials; None are those that google.auth.default finds."""


def gpu_quota(node: str, labels: dict[str, str], credentials: Credentialed) -> Finding:
    """Whether the project may have a GPU of the kind that the `labels` of the Job's node name.

    `node` is the provider's id of any node of the cluster, gce://PROJECT/ZONE/NAME.
    """
    place = re.match(r"gce://([^/]+)/([^/]+)-[^/-]+/", node)
    if place is None:
        return Finding("GPU quota: not looked at, as no node says which project and region this is", True)
    project, region = place.groups()
    try:
        quotas = within_limit(lambda: _quotas(project, region, credentials))
    except (GoogleAuthError, GoogleAPICallError, requests.RequestException, NothingGPTError) as error:
        reason = " ".join(str(error).split())[:200]
        return Finding(f"GPU quota of {project} in {region}: not looked at ({reason})", True)
    names = metrics(labels)
    listed = [name for name in names if name in quotas]
    if not listed:
        return Finding(f"GPU quota of {project} in {region}: no {names[0]} is listed there", True)
    # Spot machines without a quota of their own use that of the others.
    name = next((name for name in listed if quotas[name][1] > 0), listed[0])
    used, limit = quotas[name]
    return Finding(
        f"GPU quota {name} of {project} in {region}: {used:g} of {limit:g} used",
        limit > 0,
        "prevents training, as no node comes; `gcloud beta quotas preferences create --service=compute.googleapis.com "
        f"--project={project} --quota-id={name.replace('_', '-')}-per-project-region --dimensions=region={region} "
        "--preferred-value=1` asks for one",
    )


def metrics(labels: dict[str, str]) -> list[str]:
    """The quotas that a node with these labels may use, as Compute Engine names them."""
    kind = labels[ACCELERATOR].replace("tesla-", "").replace("-", "_").upper()
    return [*([f"PREEMPTIBLE_{kind}_GPUS"] if labels.get(SPOT) == "true" else []), f"{kind}_GPUS"]


def _quotas(project: str, region: str, credentials: Credentialed) -> dict[str, tuple[float, float]]:
    """Usage and limit by the quota's name.

    Raises GoogleAuthError, GoogleAPICallError, RequestException, and what `credentials` raises.
    """
    session = AuthorizedSession(credentials() or google.auth.default(scopes=[SCOPE])[0])
    response = session.get(f"{COMPUTE}/projects/{project}/regions/{region}?fields=quotas")
    if not response.ok:
        raise from_http_response(response)
    return {quota["metric"]: (quota["usage"], quota["limit"]) for quota in response.json().get("quotas", ())}
