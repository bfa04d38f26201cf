"""Why a Job does not start or has failed, and what to do about it, from what the API says of it.

Functions of plain data; the objects' words are those of Kubernetes and of GKE's autoscaler.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nothing_gpt.errors import FatalError, NothingGPTError, TransientError
from nothing_gpt.jobs.kube.objects import JobState, Json, PodState, Reason

NO_NODE = (
    "a node pool of spot L4s is wanted (`gcloud container node-pools create l4-spot --cluster CLUSTER --spot "
    "--node-taints cloud.google.com/gke-spot=true:NoSchedule --machine-type g2-standard-4 "
    "--accelerator type=nvidia-l4,count=1 --enable-autoscaling --max-nodes 1`)"
)
NO_QUOTA = "raise the quota PREEMPTIBLE_NVIDIA_L4_GPUS in the region, or take the Job's manifest to another cluster"
SOLD_OUT = "no spot L4 is to be had in its zones now: try later, or add zones to the node pool (--node-locations)"


@dataclass(frozen=True)
class Wait:
    """Why a pod does not run yet. `mends_itself`: a node may still come; otherwise a person must act."""

    why: Reason
    todo: str
    mends_itself: bool = True

    @property
    def hopeless(self) -> bool:
        return self.why.word in ("InvalidImageName", "ErrImageNeverPull")


def waiting(pod: PodState | None, events: Iterable[Json], namespace: str) -> Wait | None:
    """Why the Job's newest pod (None: it has none) does not start; None where nothing is said of that.

    `events`: those of the Job and of its pods, in any order.
    """
    said = {event.get("reason", ""): Reason(event["reason"], _text(event)) for event in sorted(events, key=_time)}
    if pod is None:
        why = said.get("FailedCreate")
        return why and Wait(why, _refused_pod(why.text), mends_itself="quota" in why.text)
    if pod.waiting is None:
        return None
    if pod.waiting.word not in ("Unschedulable", "SchedulingGated"):
        return Wait(pod.waiting, _container(pod, pod.waiting, namespace), mends_itself=False)
    for word in ("FailedScaleUp", "NotTriggerScaleUp"):  # what the autoscaler could not do says more
        if why := said.get(word):
            return Wait(Reason(word, f"{why.text}; {pod.waiting.text}"), _no_node(f"{why.text} {pod.waiting.text}"))
    return Wait(pod.waiting, _no_node(pod.waiting.text))


def failure(job: JobState, pod: PodState | None, log: Sequence[str], running_hours: float) -> NothingGPTError:
    """The error that a Job failed with: `pod` was its last, `log` ends with that pod's last lines."""
    assert job.failed
    last = [line for line in log if line.strip()]
    told = next((line for line in reversed(last) if line.startswith("error: ")), None)
    tail = f"; its log ends: {' / '.join(line.strip() for line in last[-3:])}" if last else "; no line of its log came"
    name, word = f"Job {job.name}", job.failed.word
    if word == "DeadlineExceeded":
        return FatalError(
            f"{name} was not done after {running_hours:g} hours (DeadlineExceeded); raise place.gke.running_hours "
            f"and run again: it goes on from its last checkpoint{tail}"
        )
    if pod is None or (pod.exit_code is None and pod.reason is None):
        return FatalError(f"{name} failed ({job.failed}), and its pod is gone; run again{tail}")
    how = f"{name}: pod {pod.name} {ended(pod)}"
    if pod.disrupted or pod.exit_code == TransientError.exit_code:
        return TransientError(
            f"{how}, and its tries are used up ({word}); run again: it goes on from its last checkpoint"
        )
    if pod.reason and pod.reason.word == "OOMKilled":
        return FatalError(f"{how}: memory ran out; raise the memory in the Job's manifest{tail}")
    if pod.exit_code in (126, 127) or (pod.reason and pod.reason.word in ("StartError", "ContainerCannotRun")):
        return FatalError(f"{how}: its command is not in the image; see place.gke.image and the Job's manifest{tail}")
    if told:
        return FatalError(f"{name}: {told.removeprefix('error: ')}")
    return FatalError(f"{how}; `nothing-gpt jobs logs {job.name}` shows all of its log{tail}")


def ended(pod: PodState) -> str:
    """How a pod ended, as the end of a sentence."""
    code = "" if pod.exit_code is None else f" with exit code {pod.exit_code}"
    if pod.disrupted:
        return f"was taken away{code} ({pod.reason or 'deleted'})"
    if pod.exit_code == TransientError.exit_code:
        return "asks to be tried again (exit code 75)"
    return f"ended{code}" + (f" ({pod.reason})" if pod.reason else "")


def _refused_pod(text: str) -> str:
    if "quota" in text:
        return "raise the namespace's ResourceQuota (`kubectl describe quota`), or wait for what uses it up"
    if "serviceaccount" in text.replace(" ", "").lower():
        return "`kubectl apply -f k8s/` makes the service account"
    return "the cluster's admission rules refuse the pod; change the Job's manifest (place.gke.manifest)"


def _container(pod: PodState, why: Reason, namespace: str) -> str:
    if why.word == "CreateContainerConfigError":
        named = [need for need in pod.needs if need[1] in why.text]
        make = [
            f"`kubectl -n {namespace} create {kind}{' generic' * (kind == 'secret')} {name} --from-literal={key}=VALUE`"
            for kind, name, key in named or pod.needs
        ]
        return f"it starts only with what {' and '.join(make) or '(nothing that the manifest names)'} makes"
    if "mage" in why.word:
        return (
            "check place.gke.image, and that the nodes' service account may read it "
            "(roles/artifactregistry.reader on the repository)"
        )
    return "see the Job's manifest (place.gke.manifest)"


def _no_node(text: str) -> str:
    low = text.lower()
    if "quota" in low:
        return NO_QUOTA
    if "out of resources" in low or "stockout" in low or "resource_pool_exhausted" in low:
        return SOLD_OUT
    if "gpu" in low or "affinity/selector" in low or "node selector" in low:
        return f"{NO_NODE}, or its L4s are in use or sold out"
    return "see the requests in the Job's manifest (place.gke.manifest) and the cluster's node pools"


def _text(event: Json) -> str:
    return " ".join(event.get("message", "").split())


def _time(event: Json) -> str:
    return event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or ""
