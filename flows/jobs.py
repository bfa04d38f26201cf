"""The training Jobs on the cluster, for a person: what there is, what they print, and an end to one."""

from rich.table import Table

from nothing_gpt.config import Settings
from nothing_gpt.errors import FatalError

try:
    from nothing_gpt.jobs.gke import GKE
    from nothing_gpt.jobs.kube.diagnosis import ended
    from nothing_gpt.jobs.kube.objects import PodState
except ModuleNotFoundError as missing:
    raise FatalError(f"place.gke: needs the package {missing.name}; pip install 'nothing-gpt[gcp]'") from None


def cluster(settings: Settings) -> GKE:
    """The cluster and namespace of `place.gke`; lines of logs go to the standard output."""
    return GKE(settings.place.gke, on_line=lambda line: print(line, flush=True))


def table(settings: Settings) -> Table | str:
    """Our Jobs, oldest first, or that there are none.

    Raises FatalError and TransientError: no cluster can be reached, or it does not let us.
    """
    found = cluster(settings).list()
    if not found:
        return f"no training Jobs in namespace {settings.place.gke.namespace}"
    columns = Table("job", "state", "pods", "newest pod", "since", "fingerprint", box=None)
    for job, pods in found:
        newest = _state(pods[-1]) if pods else ""
        columns.add_row(job.name, job.state, str(len(pods)), newest, job.created, job.fingerprint)
    return columns


def _state(pod: PodState) -> str:
    if pod.ended:
        return ended(pod)
    if pod.started:
        return f"runs on {pod.node}"
    return f"waits ({pod.waiting.word})" if pod.waiting else "starts"
