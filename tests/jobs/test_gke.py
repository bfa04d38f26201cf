"""Submitting and waiting, against an API server that does what a control plane seldom does."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.config import GKESettings
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.jobs.kube import watching
from nothing_gpt.jobs.kube.manifest import job_name
from nothing_gpt.jobs.kube.waiting import Patience
from tests.jobs import objects
from tests.jobs.conftest import HASTY, IMAGE, MANIFEST, STORE, Clock, Told
from tests.jobs.fake_api import FakeApi, serving
from tests.kube import wait_for

FINGERPRINT = "0123abcd"
NAME = job_name(FINGERPRINT, STORE)
POD = f"{NAME}-x7k2p"
PATIENT = replace(HASTY, request=20, submit=60, mending=60, look=0.05)
SCHEDULING = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
Run = Callable[..., "Future[None]"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(watching, "PAUSE_S", 0.02)
    with serving(tmp_path / "kubeconfig") as server:
        yield server


@pytest.fixture
def start(fake: FakeApi, told: Told) -> Iterator[Run]:
    """Runs the Job in a thread of its own."""
    with ThreadPoolExecutor() as pool:

        def submit(patience: Patience = PATIENT, replace: bool = False, **settings: Any) -> "Future[None]":
            gke = told.gke(GKESettings(manifest=str(MANIFEST), **settings), patience)
            return pool.submit(gke.run, FINGERPRINT, STORE, IMAGE, replace)

        yield submit
        fake.faults.clear()
        if NAME in fake.objects["jobs"]:  # a test that failed leaves nobody waiting
            fake.remove("jobs", NAME)


def job(fake: FakeApi, *conditions: dict[str, str]) -> None:
    """The Job as it was made, with conditions of its end."""
    wait_for(lambda: NAME in fake.objects["jobs"], "the Job is there")
    fake.put("jobs", {**fake.objects["jobs"][NAME], "status": {"conditions": list(conditions)}})


def trains(fake: FakeApi, pod: str = POD) -> None:
    """The Job's pod runs."""
    wait_for(lambda: NAME in fake.objects["jobs"], "the Job is there")
    fake.put("pods", objects.pod(pod, **objects.runs()))


def ends(fake: FakeApi, code: int = 0, pod: str = POD, **status: Any) -> None:
    fake.write(pod, end=True)
    fake.put("pods", objects.pod(pod, **objects.ended(code, **status)))


def lines(*texts: str, second: int = 0) -> list[str]:
    """Lines of a log, all written in the same instant."""
    return [f"2026-11-21T12:00:{second:02d}.123456789Z {text}" for text in texts]


def succeeds(fake: FakeApi) -> None:
    ends(fake)
    job(fake, objects.condition("Complete"))


# Submitting.


def test_the_job_is_the_manifest_with_the_runs_values(fake: FakeApi, start: Run) -> None:
    run = start(running_hours=2)
    trains(fake)
    made = fake.objects["jobs"][NAME]
    succeeds(fake)
    run.result(timeout=60)
    assert made["metadata"]["namespace"] == "nothing-gpt"
    assert made["metadata"]["annotations"] == {"nothing-gpt/store": STORE}
    for labels in (made["metadata"]["labels"], made["spec"]["template"]["metadata"]["labels"]):
        assert labels["nothing-gpt/fingerprint"] == FINGERPRINT
    assert made["spec"]["activeDeadlineSeconds"] == 7200
    [container] = made["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["args"]) == (IMAGE, ["--store", STORE, "--job", FINGERPRINT])


def test_a_name_that_another_training_has_is_not_taken_over(fake: FakeApi, start: Run) -> None:
    other = {"name": NAME, "labels": {"nothing-gpt/fingerprint": "beef"}, "annotations": {"nothing-gpt/store": STORE}}
    fake.put("jobs", {"metadata": other})
    with pytest.raises(FatalError, match=f"Job {NAME} in namespace nothing-gpt is another: it makes 'beef' in"):
        start().result(timeout=60)
    assert "delete" not in fake.requests


def ended_job(fake: FakeApi, *conditions: dict[str, str]) -> str:
    """A Job of an earlier run; returns its uid."""
    labels, annotations = {"nothing-gpt/fingerprint": FINGERPRINT}, {"nothing-gpt/store": STORE}
    metadata = {"name": NAME, "labels": labels, "annotations": annotations}
    fake.put("jobs", {"metadata": metadata, "status": {"conditions": list(conditions)}})
    return fake.objects["jobs"][NAME]["metadata"]["uid"]


def test_a_job_that_succeeded_is_enough_unless_what_it_made_is_gone(fake: FakeApi, start: Run) -> None:
    before = ended_job(fake, objects.condition("Complete"))
    start().result(timeout=60)
    assert fake.objects["jobs"][NAME]["metadata"]["uid"] == before
    run = start(replace=True)
    wait_for(
        lambda: NAME in fake.objects["jobs"] and fake.objects["jobs"][NAME]["metadata"]["uid"] != before, "a new Job"
    )
    trains(fake)
    succeeds(fake)
    run.result(timeout=60)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_faults_of_the_api_server_while_submitting_are_ridden_out(
    fake: FakeApi, start: Run, told: Told, status: int
) -> None:
    fake.faults["create"] = [status, status]
    run = start()
    trains(fake)
    succeeds(fake)
    run.result(timeout=60)
    assert f"answers {status}" in told.said


def test_a_lost_answer_to_the_submission_makes_no_second_job(fake: FakeApi, start: Run) -> None:
    fake.faults["create"] = ["hang"]
    ended_job(fake)  # it was made all the same
    run = start(replace(PATIENT, request=1))
    trains(fake)
    succeeds(fake)
    run.result(timeout=60)
    assert fake.requests.count("create") >= 2
    assert "delete" not in fake.requests


@pytest.mark.parametrize(
    ("status", "complaint"),
    [
        (403, "nothing-gpt doctor --set place.kind=gke"),
        (404, "kubectl create namespace nothing-gpt"),
        (422, "train-job.yaml"),
    ],
)
def test_a_refused_submission_says_what_to_do(fake: FakeApi, start: Run, status: int, complaint: str) -> None:
    fake.faults["create"] = [status]
    with pytest.raises(FatalError, match=complaint):
        start().result(timeout=60)


def test_no_cluster_is_one_line(tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(FatalError, match=r"^no cluster: .* run `gcloud container clusters get-credentials"):
        told.gke(GKESettings()).list()


# Watching.


def test_a_watch_that_expired_or_broke_off_begins_anew_and_nothing_is_missed(fake: FakeApi, start: Run) -> None:
    fake.faults |= {"watch-pods": ["gone", "cut", 503], "watch-jobs": [500, "gone", 401, "cut"], "list-pods": [429]}
    run = start()
    trains(fake)
    wait_for(lambda: not any(fake.faults.values()), "all faults have happened")
    succeeds(fake)
    run.result(timeout=60)


def test_a_watch_that_ends_at_once_is_not_asked_for_in_a_hot_loop(
    fake: FakeApi, start: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PAUSE_S", 0.5)
    monkeypatch.setattr(watching, "WATCH_S", 0)  # the server ends every watch at once
    run = start()
    trains(fake)
    wait_for(lambda: fake.requests.count("watch-pods") >= 3, "the watch was asked for again")
    begun = fake.requests.count("watch-pods")
    threading.Event().wait(2)
    assert fake.requests.count("watch-pods") - begun <= 5
    succeeds(fake)
    run.result(timeout=60)


def test_a_job_that_somebody_deleted_is_not_waited_for(fake: FakeApi, start: Run) -> None:
    run = start()
    trains(fake)
    wait_for(lambda: "watch-jobs" in fake.requests, "the Job is watched")
    fake.remove("jobs", NAME)
    with pytest.raises(FatalError, match="is gone from the cluster"):
        run.result(timeout=60)


# Logs.


def test_a_log_that_breaks_off_goes_on_without_a_line_twice_or_missing(fake: FakeApi, start: Run, told: Told) -> None:
    # Equal lines in one instant are different lines; the log is cut in the middle of one of them.
    run = start()
    trains(fake)
    fake.write(POD, *lines("one", "one", "two"))
    wait_for(lambda: len(told.lines) == 3 or run.done(), "the first lines")
    fake.faults["log"] = ["cut", 500, 400, "cut"]
    with fake.changed:
        fake.log_ended.add(POD)  # this connection ends, though the container runs
        fake.changed.notify_all()
    wait_for(lambda: fake.requests.count("log") >= 2, "the log is asked for again")
    with fake.changed:
        fake.log_ended.clear()
    fake.write(POD, *lines("one", "three", "three"), *lines("one", second=7))
    wait_for(lambda: len(told.lines) == 7 or run.done(), "all lines")
    succeeds(fake)
    run.result(timeout=60)
    assert told.lines == ["one", "one", "two", "one", "three", "three", "one"]
    asked = [query for request, query in zip(fake.requests, fake.queries, strict=True) if request == "log"]
    assert "sinceTime" not in asked[0]
    assert asked[-1]["sinceTime"].startswith("2026-11-21T12:00:0")


def test_the_logs_of_successive_pods_come_in_order_with_the_reason_between(
    fake: FakeApi, start: Run, told: Told
) -> None:
    run = start()
    trains(fake)
    fake.write(POD, *lines("first"))
    wait_for(lambda: told.lines == ["first"] or run.done(), "the first pod's line")
    taken = objects.condition("DisruptionTarget", "TerminationByKubelet", "Pod was terminated in response to shutdown.")
    ends(fake, 143, conditions=[taken])
    second = f"{NAME}-zz"
    fake.put("pods", objects.pod(second, created="2026-11-21T12:09:00Z", **objects.runs()))
    fake.write(second, *lines("second"))
    wait_for(lambda: told.lines[-1] == "second" or run.done(), "the second pod's line")
    ends(fake, pod=second)
    job(fake, objects.condition("Complete"))
    run.result(timeout=60)
    assert told.lines == ["first", "second"]
    reason = f"pod {POD} was taken away with exit code 143 (TerminationByKubelet: Pod was terminated in response to"
    assert reason in told.said


def test_a_log_that_went_with_its_node_is_not_waited_for(fake: FakeApi, start: Run, told: Told) -> None:
    run = start()
    fake.faults["log"] = [500] * 100
    trains(fake)
    wait_for(lambda: "log" in fake.requests or run.done(), "the log is asked for")
    ends(fake)
    job(fake, objects.condition("Complete"))
    run.result(timeout=60)
    assert f"the rest of pod {POD}'s log is gone with its node" in told.said


# Outages and time limits.


def goes_silent(fake: FakeApi) -> None:
    """The API server answers no more, until `faults` is cleared."""
    for request in ("watch-jobs", "watch-pods", "list-jobs", "list-pods", "read"):
        fake.faults[request] = ["hang", *[503] * 10_000]


def test_an_outage_does_not_count_as_waiting_for_a_node(fake: FakeApi, start: Run, told: Told, clock: Clock) -> None:
    run = start(replace(PATIENT, request=0.5))
    wait_for(lambda: "watch-pods" in fake.requests and "watch-jobs" in fake.requests, "the Job is watched")
    goes_silent(fake)
    wait_for(lambda: "goes on without" in told.said or run.done(), "the silence is said")
    clock.ahead_s = 3000  # a node is waited for at most 1,800 s
    fake.faults.clear()
    wait_for(lambda: "the cluster answers again" in told.said or run.done(), "it is heard again")
    trains(fake)
    succeeds(fake)
    run.result(timeout=60)


def test_an_outage_without_end_leaves_the_job_alone(fake: FakeApi, start: Run, told: Told, clock: Clock) -> None:
    run = start(replace(PATIENT, request=0.5))
    trains(fake)
    wait_for(lambda: "runs on node-1" in told.said or run.done(), "the pod is seen")
    goes_silent(fake)
    wait_for(lambda: "goes on without" in told.said or run.done(), "the silence is said")
    clock.ahead_s = 3600
    with pytest.raises(TransientError, match=r"has not answered for 60 minutes; Job \S+ is left alone"):
        run.result(timeout=60)
    assert "delete" not in fake.requests


def test_each_wait_for_a_node_has_its_own_time(fake: FakeApi, start: Run, told: Told, clock: Clock) -> None:
    run = start()
    trains(fake)
    wait_for(lambda: "runs on node-1" in told.said or run.done(), "the pod is seen")
    clock.ahead_s = 7200  # training may take that long
    ends(fake, 143, conditions=[objects.condition("DisruptionTarget")])
    wait_for(lambda: "was taken away" in told.said or run.done(), "its end is seen")
    clock.ahead_s += 1700
    second = f"{NAME}-zz"
    fake.put("pods", objects.pod(second, created="2026-11-21T12:09:00Z", **objects.unschedulable(SCHEDULING)))
    wait_for(lambda: f"waits: Unschedulable: {SCHEDULING}" in told.said or run.done(), "the second wait is said")
    clock.ahead_s += 200
    with pytest.raises(FatalError, match=r"did not start within 30 minutes \(place\.gke\.scheduling_minutes\)"):
        run.result(timeout=60)


# What cannot start.


@pytest.mark.parametrize(
    ("status", "events", "complaint"),
    [
        (
            objects.waits("InvalidImageName", "couldn't parse image reference"),
            [],
            r"InvalidImageName.*place\.gke\.image",
        ),
        (
            objects.waits("ImagePullBackOff", "Back-off pulling image"),
            [],
            r"ImagePullBackOff.*artifactregistry\.reader",
        ),
        (
            objects.waits("CreateContainerConfigError", "couldn't find key HF_TOKEN in Secret nothing-gpt/hf-secret"),
            [],
            r"create secret generic hf-secret --from-literal=HF_TOKEN=VALUE",
        ),
        (objects.unschedulable(SCHEDULING), [], r"0/3 nodes.*node-pools create.*--node-taints.*deleted"),
        (
            objects.unschedulable(SCHEDULING),
            [("pod", "NotTriggerScaleUp", "pod didn't trigger scale-up: 1 in backoff after failed scale-up")],
            r"NotTriggerScaleUp: pod didn't trigger scale-up",
        ),
        (
            objects.unschedulable(SCHEDULING),
            [("pod", "FailedScaleUp", "Node scale up in zones europe-west4-a failed: GCE quota exceeded.")],
            r"FailedScaleUp.*PREEMPTIBLE_NVIDIA_L4_GPUS",
        ),
        (
            objects.unschedulable(SCHEDULING),
            [("pod", "FailedScaleUp", "Node scale up in zones europe-west4-a failed: GCE out of resources.")],
            r"FailedScaleUp.*no spot L4 is to be had",
        ),
        (
            None,
            [("job", "FailedCreate", 'Error creating: pods "x" is forbidden: exceeded quota: gpus, requested: 1')],
            r"FailedCreate.*exceeded quota.*ResourceQuota",
        ),
        (None, [("job", "FailedCreate", 'Error creating: pods "x" is forbidden: violates PodSecurity')], "admission"),
        (None, [], r"nothing says why; see `kubectl -n nothing-gpt describe job"),
    ],
)
def test_what_cannot_start_ends_with_the_reason_and_what_mends_it(
    fake: FakeApi, start: Run, status: dict[str, Any] | None, events: list[tuple[str, str, str]], complaint: str
) -> None:
    for about, reason, message in events:
        fake.put("events", objects.event(POD if about == "pod" else NAME, reason, message))
    if status:
        fake.put("pods", objects.pod(POD, **status))
    with pytest.raises(FatalError, match=complaint) as caught:
        start(replace(PATIENT, mending=0.2), scheduling_minutes=0.02).result(timeout=60)
    assert "\n" not in str(caught.value)
    assert fake.requests.count("delete") == 1


def test_a_secret_that_comes_in_time_is_enough(fake: FakeApi, start: Run, told: Told) -> None:
    fake.put("pods", objects.pod(POD, **objects.waits("CreateContainerConfigError", 'secret "hf-secret" not found')))
    run = start()
    wait_for(lambda: "waits: CreateContainerConfigError" in told.said or run.done(), "it is said")
    trains(fake)
    succeeds(fake)
    run.result(timeout=60)


def test_events_that_we_may_not_read_are_done_without(fake: FakeApi, start: Run, told: Told) -> None:
    fake.faults["list-events"] = [403] * 1000
    fake.put("pods", objects.pod(POD, **objects.unschedulable(SCHEDULING)))
    run = start()
    wait_for(lambda: "waits: Unschedulable: 0/3 nodes" in told.said or run.done(), "it is said")
    trains(fake)
    succeeds(fake)
    run.result(timeout=60)


# How a Job fails.


@pytest.mark.parametrize(
    ("condition", "status", "kind", "complaint"),
    [
        (("BackoffLimitExceeded", ""), objects.ended(137, "OOMKilled"), FatalError, "OOMKilled.*raise the memory"),
        (("BackoffLimitExceeded", ""), objects.ended(75), TransientError, "tries are used up"),
        (
            ("BackoffLimitExceeded", ""),
            objects.ended(139),
            FatalError,
            "exit code 139.*jobs logs.*its log ends: a / b$",
        ),
        (("PodFailurePolicy", ""), objects.ended(1), FatalError, "exit code 1;.*its log ends: a / b$"),
        (("DeadlineExceeded", ""), objects.ended(143), FatalError, "not done after 6 hours.*place.gke.running_hours"),
        (
            ("BackoffLimitExceeded", ""),
            objects.ended(137, reason="Error")
            | {"reason": "Evicted", "message": "The node was low on resource: disk."},
            TransientError,
            r"was taken away with exit code 137 \(Evicted: The node was low",
        ),
    ],
)
def test_a_failed_job_says_how_its_last_pod_ended(
    fake: FakeApi, start: Run, condition: tuple[str, str], status: dict[str, Any], kind: type[Exception], complaint: str
) -> None:
    run = start()
    fake.write(POD, *lines("a", "b"), end=True)
    wait_for(lambda: NAME in fake.objects["jobs"], "the Job is there")
    fake.put("pods", objects.pod(POD, **status))
    job(fake, objects.condition("Failed", *condition))
    with pytest.raises(kind, match=complaint) as caught:
        run.result(timeout=60)
    assert "\n" not in str(caught.value)
    assert "delete" not in fake.requests


def test_a_failed_job_whose_pod_is_gone_still_fails(fake: FakeApi, start: Run) -> None:
    run = start()
    job(fake, objects.condition("Failed", "DeadlineExceeded", "Job was active longer than specified deadline"))
    with pytest.raises(FatalError, match=r"not done after 6 hours .*it wrote no log$"):
        run.result(timeout=60)
