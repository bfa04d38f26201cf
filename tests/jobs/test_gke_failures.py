"""What is said of a Job that cannot start, or has failed, against an API server that shows it so."""

from dataclasses import replace
from typing import Any

import pytest

from nothing_gpt.errors import FatalError, TransientError
from tests.jobs import objects
from tests.jobs.conftest import NAME, PATIENT, POD, SCHEDULING, Run, Told, job, lines, succeeds, trains
from tests.jobs.fake_api import FakeApi
from tests.kube import wait_for

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
    with pytest.raises(FatalError, match=r"not done after 6 hours .*no line of its log came$"):
        run.result(timeout=60)
