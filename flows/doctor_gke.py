"""The doctor's part for the place `gke`: the cluster, what we may do there, and what the training Job refers to.

It asks with the same credentials as a run, so it may not see everything that a run does not need: what it could not
look at it says, and that is no fault.
"""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.findings import Finding
from flows.gpu_quota import ACCELERATOR, gpu_quota
from nothing_gpt.config import PlaceSettings, Settings
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.jobs.kube.api import Api, Refused
from tasks.credentials import place_credentials

TIMEOUT_S = 5.0
PERMISSIONS = {
    ("batch", "jobs"): ("create", "delete", "get", "list", "watch"),
    ("", "pods"): ("get", "list", "watch"),
    ("", "pods/log"): ("get",),
    ("", "events"): ("list",),
}
"""What a run asks of the cluster: verbs by API group and resource, as in the Role of k8s/service-accounts.yaml."""
IDENTITY = "iam.gke.io/gcp-service-account"
GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Key:
    """A key of a secret, which may be `optional`."""

    secret: str
    name: str
    optional: bool


@dataclass(frozen=True)
class Wanted:
    """What the Job's manifest refers to: keys of secrets, a service account, labels of a node."""

    keys: list[Key]
    service_account: str
    node_labels: dict[str, str]


def examine_gke(settings: Settings) -> Iterator[Finding]:
    """All checks of the cluster and of the Job's settings; where the cluster does not answer, that is the last one."""
    gke = settings.place.gke
    yield Finding(
        f"image: {gke.image or (f'in {gke.registry}' if gke.registry else 'none')}",
        bool(gke.image or gke.registry),
        "prevents training; `gcloud artifacts repositories create REPOSITORY --repository-format=docker "
        "--location=LOCATION`, then --set place.gke.registry=LOCATION-docker.pkg.dev/PROJECT/REPOSITORY",
    )
    try:
        wanted = _wanted(Path(gke.manifest))
    except FatalError as error:
        yield Finding(f"manifest {gke.manifest}", False, f"prevents training; {error}")
        return
    try:
        api = Api(gke.context, gke.namespace, TIMEOUT_S)
        yield Finding(f"cluster {api.server}: Kubernetes {api.get('/version')['gitVersion']}", True)
        yield from _permissions(api)
        yield _namespace(api)
        yield from (_secret(api, key) for key in wanted.keys)
        yield _service_account(api, wanted.service_account)
        yield from _nodes(api, wanted.node_labels)
        yield from _quotas(api)
        yield from _project_quota(api, wanted.node_labels, settings.place)
    except (FatalError, TransientError) as error:
        yield Finding("cluster", False, f"prevents training; {error}; `kubectl cluster-info` says whether it is there")


def _wanted(manifest: Path) -> Wanted:
    try:
        pod = yaml.safe_load(manifest.read_text(encoding="utf-8"))["spec"]["template"]["spec"]
        variables = [variable for container in pod["containers"] for variable in container.get("env", ())]
        references = [reference for one in variables if (reference := one.get("valueFrom", {}).get("secretKeyRef"))]
        keys = [Key(one["name"], one["key"], one.get("optional", False)) for one in references]
        return Wanted(keys, pod.get("serviceAccountName", "default"), pod.get("nodeSelector", {}))
    except OSError as error:
        raise FatalError(f"it cannot be read ({error.strerror}); correct place.gke.manifest") from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        raise FatalError("it is no manifest of a Job; correct it, or place.gke.manifest") from None


def _permissions(api: Api) -> Iterator[Finding]:
    """One finding a resource; the cluster is asked about each verb."""
    for (group, resource), verbs in PERMISSIONS.items():
        refused = [verb for verb in verbs if not _may(api, group, resource, verb)]
        yield Finding(
            f"may {', '.join(refused or verbs)} {resource}",
            not refused,
            f"prevents training; let an administrator run `kubectl -n {api.namespace} create rolebinding NAME "
            "--role=nothing-gpt-jobs --user=ACCOUNT` (the role comes with k8s/service-accounts.yaml)",
        )


def _may(api: Api, group: str, resource: str, verb: str) -> bool:
    name, _, subresource = resource.partition("/")
    asked = {"namespace": api.namespace, "verb": verb, "group": group, "resource": name, "subresource": subresource}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    return api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)["status"]["allowed"]


def _namespace(api: Api) -> Finding:
    def lack() -> None:
        api.get(f"/api/v1/namespaces/{api.namespace}")

    create = f"`kubectl create namespace {api.namespace}`"
    return _look(f"namespace {api.namespace}", f"prevents training; {create}, and apply k8s/ there", lack)


def _secret(api: Api, key: Key) -> Finding:
    def lack() -> str | None:
        data = api.get(f"/api/v1/namespaces/{api.namespace}/secrets/{key.secret}").get("data") or {}
        return None if base64.b64decode(data.get(key.name, "")).strip() else f"it has no {key.name}"

    create = f"`kubectl -n {api.namespace} create secret generic {key.secret} --from-literal={key.name}=...`"
    found = _look(f"secret {key.secret}", f"prevents training; {create}", lack)
    if key.optional and not found.ok:
        return Finding(f"{found.what}, which is allowed; {create}", True)
    return found


def _service_account(api: Api, name: str) -> Finding:
    def lack() -> str | None:
        found = api.get(f"/api/v1/namespaces/{api.namespace}/serviceaccounts/{name}")
        return None if (found["metadata"].get("annotations") or {}).get(IDENTITY) else "it has no Google identity"

    remedy = (
        f"prevents training, for the pod cannot use the bucket; make it as k8s/service-accounts.yaml says, `kubectl -n "
        f"{api.namespace} annotate serviceaccount {name} {IDENTITY}=ACCOUNT@PROJECT.iam.gserviceaccount.com`"
    )
    return _look(f"service account {name}", remedy, lack)


def _look(what: str, remedy: str, lack: Callable[[], str | None]) -> Finding:
    """A finding about an object that `lack` gets: it returns what the object lacks, None for nothing."""
    try:
        wrong = lack()
    except Refused as error:
        if error.status == 403:
            return Finding(f"{what}: not looked at, as this account may not", True)
        if error.status != 404:
            raise
        wrong = "it is not there"
    return Finding(what if wrong is None else f"{what}: {wrong}", wrong is None, remedy)


def _nodes(api: Api, labels: dict[str, str]) -> Iterator[Finding]:
    """The nodes that the Job would fit now. None is no fault: a node pool may begin with none."""
    selector = ",".join(f"{label}={value}" for label, value in labels.items())
    nodes = _listed(api, "/api/v1/nodes", labelSelector=selector)
    if nodes is None:
        yield Finding("nodes for the Job: not looked at, as this account may not", True)
        return
    gpus = sum(int(node["status"].get("allocatable", {}).get(GPU, 0)) for node in nodes)
    first = "" if nodes else f"; a node pool with {selector} must add one, see `gcloud container node-pools list`"
    yield Finding(f"nodes for the Job: {len(nodes)} now, GPUs: {gpus}{first}", True)


def _quotas(api: Api) -> Iterator[Finding]:
    """The namespace's own quotas of GPUs."""
    quotas = _listed(api, f"/api/v1/namespaces/{api.namespace}/resourcequotas")
    if quotas is None:
        yield Finding("resource quotas: not looked at, as this account may not", True)
    for quota in quotas or ():
        name, status = quota["metadata"]["name"], quota.get("status") or {}
        if hard := (status.get("hard") or {}).get(f"requests.{GPU}"):
            used = (status.get("used") or {}).get(f"requests.{GPU}", "0")
            remedy = f"the Job waits for a free one; `kubectl -n {api.namespace} edit resourcequota {name}`"
            yield Finding(f"resource quota {name}: {used} of {hard} GPUs used", int(used) < int(hard), remedy)


def _project_quota(api: Api, labels: dict[str, str], place: PlaceSettings) -> Iterator[Finding]:
    """The project's quota of the Job's GPUs; any node says which project and region that is."""
    if ACCELERATOR in labels:
        nodes = _listed(api, "/api/v1/nodes", limit="1") or [{}]
        node = nodes[0].get("spec", {}).get("providerID", "")
        yield gpu_quota(node, labels, lambda: place_credentials(place))


def _listed(api: Api, path: str, **query: str) -> list[dict[str, Any]] | None:
    """The objects at a path, None where this account may not see them."""
    try:
        return api.get(path, **query)["items"]
    except Refused as error:
        if error.status != 403:
            raise
        return None
