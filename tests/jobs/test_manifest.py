"""The training Job's manifest: valid for a current Kubernetes, asks for a spot L4, and which pod's end means what."""

from collections.abc import Mapping
from typing import Any

import kubernetes_validate
import pytest
import yaml

from nothing_gpt.config import GKESettings
from nothing_gpt.errors import FatalError
from nothing_gpt.jobs.kube.manifest import job_name, manifest
from nothing_gpt.ranks import ENDPOINT
from tests.jobs.conftest import IMAGE, MANIFEST, STORE

FINGERPRINT = "0123abcd" * 8
SETTINGS = GKESettings(manifest=str(MANIFEST))


@pytest.fixture(params=["by hand", "by the run"])
def job(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "by hand":
        return yaml.safe_load(MANIFEST.read_text())
    return manifest(SETTINGS, FINGERPRINT[:20], STORE, IMAGE)


@pytest.fixture
def group() -> dict[str, Any]:
    """Two machines of four GPUs."""
    return manifest(SETTINGS, FINGERPRINT[:20], STORE, IMAGE, gpus=4, nodes=2)


def test_a_job_of_several_machines_is_a_valid_indexed_job(group: dict[str, Any]) -> None:
    kubernetes_validate.validate(group, kubernetes_validate.latest_version(), strict=True)
    spec = group["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)


def test_each_of_its_pods_takes_as_much_as_its_processes_do(group: dict[str, Any], job: dict[str, Any]) -> None:
    taken, single = (one["spec"]["template"]["spec"]["containers"][0]["resources"] for one in (group, job))
    assert single["requests"] == {"cpu": "3", "memory": "12Gi", "ephemeral-storage": "30Gi", "nvidia.com/gpu": 1}
    assert taken["requests"] == {"cpu": "12", "memory": "48Gi", "ephemeral-storage": "30Gi", "nvidia.com/gpu": 4}
    assert taken["limits"] == {"memory": "48Gi", "ephemeral-storage": "30Gi", "nvidia.com/gpu": 4}


def test_its_pods_meet_at_the_first_by_the_headless_service(group: dict[str, Any]) -> None:
    """https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode: an Indexed Job's pod has the host
    name JOB-INDEX, and with a subdomain, which is a headless Service's name, that is an address."""
    (service,) = yaml.safe_load_all((MANIFEST.parent / "training.yaml").read_text())
    pod = group["spec"]["template"]
    (port,) = service["spec"]["ports"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    (container,) = pod["spec"]["containers"]
    assert {"name": port["targetPort"], "containerPort": port["port"]} in container["ports"]
    (meeting,) = [one["value"] for one in container["env"] if one["name"] == ENDPOINT]
    assert meeting == f"{group['metadata']['name']}-0.{service['metadata']['name']}:{port['port']}"
    assert len(f"{group['metadata']['name']}-63") <= 63


def test_a_job_of_one_machine_has_none_of_that() -> None:
    job = manifest(SETTINGS, FINGERPRINT[:20], STORE, IMAGE, gpus=2)
    assert "completionMode" not in job["spec"]
    assert "subdomain" not in job["spec"]["template"]["spec"]
    assert not any(one["name"] == ENDPOINT for one in job["spec"]["template"]["spec"]["containers"][0]["env"])


def test_it_is_valid_strictly(job: dict[str, Any]) -> None:
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_it_asks_for_a_spot_l4_and_may_run_there(job: dict[str, Any]) -> None:
    pod = job["spec"]["template"]["spec"]
    spot, l4 = "cloud.google.com/gke-spot", "cloud.google.com/gke-accelerator"
    assert pod["nodeSelector"] == {spot: "true", l4: "nvidia-l4"}
    assert {toleration["key"] for toleration in pod["tolerations"]} == {spot, "nvidia.com/gpu"}
    assert pod["terminationGracePeriodSeconds"] <= 15
    assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy wants
    assert pod["securityContext"]["runAsNonRoot"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    [mount] = container["volumeMounts"]
    assert mount["mountPath"] == next(item["value"] for item in container["env"] if item["name"] == "TMPDIR")


def decide(policy: Mapping[str, Any], pod: Mapping[str, Any]) -> str:
    """What the Job controller does with a failed pod: the action of the first rule that fits it, else Count.

    https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy: a rule has either exit codes or
    conditions; exit codes are those of the named container (of any, where none is named) where it has terminated, and
    0 fits none; a condition fits where type and status are equal.
    """
    for rule in policy["rules"]:
        if codes := rule.get("onExitCodes"):
            for container in pod["containerStatuses"]:
                code = container["state"].get("terminated", {}).get("exitCode", 0)
                named = codes.get("containerName") in (None, container["name"])
                if named and code and (code in codes["values"]) == (codes["operator"] == "In"):
                    return rule["action"]
        elif any(
            (pattern["type"], pattern.get("status", "True")) == (condition["type"], condition["status"])
            for pattern in rule["onPodConditions"]
            for condition in pod["conditions"]
        ):
            return rule["action"]
    return "Count"


@pytest.mark.parametrize(
    ("code", "condition", "action"),
    [
        (1, None, "FailJob"),  # settings or data
        (2, None, "FailJob"),  # arguments
        (127, None, "FailJob"),  # no such command
        (75, None, "Ignore"),  # asked to stop, or a fault that passes
        (137, None, "Count"),  # memory
        (139, None, "Count"),  # a crash
        (75, ("DisruptionTarget", "True"), "Ignore"),  # a spot node went, with time to say so
        (137, ("DisruptionTarget", "True"), "Ignore"),  # without
        (1, ("DisruptionTarget", "True"), "Ignore"),  # what fails while its node goes has not failed for good
        (1, ("DisruptionTarget", "False"), "FailJob"),
        (None, ("DisruptionTarget", "True"), "Ignore"),  # the node is gone, and nobody knows how the container ended
        (None, None, "Count"),
    ],
)
def test_what_the_end_of_a_pod_means(
    job: dict[str, Any], code: int | None, condition: tuple[str, str] | None, action: str
) -> None:
    terminated = {} if code is None else {"terminated": {"exitCode": code}}
    pod = {
        "containerStatuses": [{"name": "train", "state": terminated}],
        "conditions": [{"type": "Ready", "status": "False"}],
    }
    if condition:
        pod["conditions"].append({"type": condition[0], "status": condition[1]})
    assert decide(job["spec"]["podFailurePolicy"], pod) == action


def test_a_jobs_name_is_a_dns_label_of_what_it_makes_and_where() -> None:
    names = {job_name(FINGERPRINT, STORE), job_name(FINGERPRINT, STORE + "2"), job_name("other", STORE)}
    assert len(names) == 3
    assert job_name(FINGERPRINT, STORE) in names
    for name in names:
        assert len(name) <= 63 - len("-x7k2p")  # as a pod's name and a label's value too
        assert name.replace("-", "").isalnum()
        assert name == name.lower()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "No such file"),
        ("a: [", "not YAML"),
        ("kind: ConfigMap", "not a Job with a container named train"),
        ("spec: {template: {spec: {containers: [{name: other}]}}}", "not a Job with a container named train"),
        ("spec: {template: {spec: {containers: [{name: train}]}}}\nmetadata: mine", "not a Job with a container named"),
        ("\udcff", "not YAML"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_named(tmp_path: Any, text: str | None, complaint: str) -> None:
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FatalError, match=complaint) as caught:
        manifest(GKESettings(manifest=str(path)), FINGERPRINT, STORE, IMAGE)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("resources", ["", ", resources: {limits: {cpu: 1.5}}", ", resources: {limits: }"])
def test_resources_that_cannot_be_multiplied_are_named(tmp_path: Any, resources: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"{{metadata: {{}}, spec: {{template: {{spec: {{containers: [{{name: train{resources}}}]}}}}}}}}")
    settings = GKESettings(manifest=str(path))
    with pytest.raises(FatalError, match=r"training.gpus=2 takes the resources .*; give them in whole numbers"):
        manifest(settings, FINGERPRINT, STORE, IMAGE, gpus=2)


def test_what_a_manifest_leaves_empty_is_filled_in(tmp_path: Any) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "metadata: {labels: , annotations: }\n"
        "spec: {template: {metadata: , spec: {containers: [{name: train, env: }]}}}"
    )
    job = manifest(GKESettings(manifest=str(path)), FINGERPRINT, STORE, IMAGE, nodes=2)
    assert job["metadata"]["labels"] == job["spec"]["template"]["metadata"]["labels"]
    assert job["metadata"]["labels"]["nothing-gpt/fingerprint"] == FINGERPRINT
    assert job["metadata"]["annotations"] == {"nothing-gpt/store": STORE}
