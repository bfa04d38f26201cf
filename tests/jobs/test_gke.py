"""Submitting and waiting, against an API server that does what a control plane seldom does."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from nothing_gpt.config import GKESettings
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.jobs.kube import watching
from tests.jobs import objects
from tests.jobs.conftest import (
    FINGERPRINT,
    IMAGE,
    NAME,
    PATIENT,
    POD,
    SCHEDULING,
    STORE,
    Clock,
    Run,
    Told,
    ended_job,
    ends,
    job,
    lines,
    succeeds,
    trains,
)
from tests.jobs.fake_api import FakeApi
from tests.kube import wait_for

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


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_faults_of_the_api_server_while_submitting_are_ridden_out(
    fake: FakeApi, start: Run, told: Told, status: int
) -> None:
    fake.faults["create"] = [status, status]
    run = start()
    trains(fake)
    succeeds(fake)
    run.result(timeout=60)
    assert f" {status}" in told.said
    assert "trying again" in told.said


def test_credentials_that_stay_bad_are_an_error_in_the_end(fake: FakeApi, start: Run) -> None:
    fake.faults["create"] = [401] * 1000
    with pytest.raises(FatalError, match=r"401 .*gcloud auth login"):
        start(replace(PATIENT, submit=1)).result(timeout=60)
    assert fake.requests.count("create") >= 2


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
        (403, "`nothing-gpt doctor` with these settings says which rights"),
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
    with pytest.raises(TransientError, match="is gone from the cluster"):
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


def test_credentials_that_expire_while_a_log_is_read_are_no_end(fake: FakeApi, start: Run, told: Told) -> None:
    fake.faults["log"] = [401]
    run = start()
    trains(fake)
    fake.write(POD, *lines("one"))
    wait_for(lambda: told.lines == ["one"] or run.done(), "the line")
    fake.faults |= {"read": [401], "list-pods": [401]}
    succeeds(fake)
    run.result(timeout=60)


def test_a_job_whose_logs_may_not_be_read_is_waited_for(fake: FakeApi, start: Run, told: Told) -> None:
    fake.faults["log"] = [403] * 2
    run = start()
    trains(fake)
    wait_for(lambda: "logs may not be read" in told.said or run.done(), "it is said")
    ends(fake, 143, conditions=[objects.condition("DisruptionTarget")])
    second = f"{NAME}-zz"
    fake.put("pods", objects.pod(second, created="2026-11-21T12:09:00Z", **objects.runs()))
    wait_for(lambda: not fake.faults["log"] or run.done(), "the second log is asked for")
    ends(fake, pod=second)
    job(fake, objects.condition("Complete"))
    run.result(timeout=60)
    assert told.said.count("logs may not be read") == 1


def test_a_job_that_may_not_be_watched_is_left_alone(fake: FakeApi, start: Run) -> None:
    fake.faults["list-pods"] = [403] * 10
    with pytest.raises(FatalError, match=rf"refuses GET .*/pods: 403 .*; Job {NAME} goes on, and is found again by"):
        start().result(timeout=60)
    assert "delete" not in fake.requests


# Interruption.


@pytest.mark.parametrize("replaced", [False, True])
def test_an_interrupted_run_deletes_its_job_but_none_that_replaced_it(
    fake: FakeApi, start: Run, told: Told, replaced: bool
) -> None:
    def interrupt(line: str) -> None:
        if replaced:
            fake.remove("jobs", NAME)
            ended_job(fake)
        raise KeyboardInterrupt

    told.on_line = interrupt
    run = start()
    trains(fake)
    fake.write(POD, *lines("a line"))
    with pytest.raises(KeyboardInterrupt):
        run.result(timeout=60)
    assert fake.requests.count("delete") == 1
    assert (NAME in fake.objects["jobs"]) == replaced
    assert ("deleted, as the run was interrupted" in told.said) != replaced
    assert "may still run" not in told.said


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


def test_a_job_that_has_ended_well_is_done_though_the_rest_of_its_log_does_not_come(
    fake: FakeApi, start: Run, told: Told, clock: Clock
) -> None:
    run = start(replace(PATIENT, request=0.5))
    trains(fake)
    fake.write(POD, *lines("the last line that came"))
    wait_for(lambda: told.lines or run.done(), "the log is read")
    pods = fake.requests.count("list-pods")
    job(fake, objects.condition("Complete"))
    wait_for(lambda: fake.requests.count("list-pods") > pods or run.done(), "the end is seen")
    goes_silent(fake)
    wait_for(lambda: "does not answer" in told.said or run.done(), "the silence is said")
    assert not run.done()
    clock.ahead_s = 100  # longer than the rest of a log is waited for, and not as long as an outage
    run.result(timeout=60)


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
