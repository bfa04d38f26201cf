"""The files below k8s/: as the schemas of a current Kubernetes have them, and in agreement with each other."""

import os
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from flows.doctor_gke import PERMISSIONS
from tests.k8s.manifests import FOLDER, LASTING, Manifest, containers, find, lasting, of_kind, pods, read

VERSION = "1.37"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")


def labels(pod: Manifest) -> dict[str, str]:
    return pod["metadata"]["labels"]


def selected(selector: dict[str, str], pod: Manifest) -> bool:
    return selector.items() <= labels(pod).items()


def references(kind: str) -> set[tuple[str, str]]:
    """Names and keys of the secrets or config maps that containers take variables from."""
    variables = [one for pod in pods() for container in containers(pod) for one in container.get("env", ())]
    found = [one["valueFrom"][kind] for one in variables if kind in one.get("valueFrom", {})]
    return {(reference["name"], reference["key"]) for reference in found}


@pytest.mark.parametrize("file", FILES)
def test_each_is_what_a_current_kubernetes_knows(file: str) -> None:
    for manifest in read(file):
        assert kubernetes_validate.validate(manifest, VERSION, strict=True) == VERSION


def test_the_kustomization_has_all_that_lasts_and_no_job() -> None:
    assert sorted([*LASTING, "train-job.yaml"]) == FILES
    assert not of_kind("Job")


def built(command: str, **variables: str) -> list[Manifest]:
    """What a shell command prints with these variables, where kubectl is at hand."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, cwd=FOLDER.parent, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_the_command_in_the_kustomization_fills_in_all_that_is_to_be_filled_in() -> None:
    """Run as it stands there, but for the images' building and its last word: what comes out has no word in capitals
    left, and images by their digests."""
    said = "\n".join(line.removeprefix("#") for line in (FOLDER / "kustomization.yaml").read_text().splitlines())
    command = said[said.index("kubectl kustomize") : said.index("| kubectl apply")]
    place = "us-central1-docker.pkg.dev/my-project/nothing-gpt"
    digests = {name: f"{place}/{name}@sha256:{number * 64}" for name, number in (("worker", "1"), ("serve", "2"))}
    assert all(f"{name}=$(nothing-gpt image {name} --settings deployments/gke.yaml)" in said for name in digests)
    before, after = built("kubectl kustomize k8s"), built(command, **digests)
    assert len(before) == len(lasting())
    placeholders = r"LOCATION|PROJECT|REPOSITORY|BUCKET|PREFIX|HUB_NAME|COMMIT"
    assert re.search(placeholders, yaml.safe_dump_all(before))
    assert not re.search(placeholders, yaml.safe_dump_all(after))
    images = {c["image"] for m in after if m["kind"] == "Deployment" for c in containers(m["spec"]["template"])}
    assert images == {*digests.values(), "caddy:2.11-alpine"}


def test_all_of_it_is_in_one_namespace() -> None:
    names = {(m["kind"], m["metadata"].get("namespace")) for m in built("kubectl kustomize k8s")}
    assert names == {(m["kind"], None if m["kind"] == "Namespace" else "nothing-gpt") for m in lasting()}


def test_every_service_leads_to_pods_and_their_named_ports() -> None:
    for service in of_kind("Service"):
        behind = [pod for pod in pods() if selected(service["spec"]["selector"], pod)]
        assert len(behind) == 1
        ports = {port["name"] for container in behind[0]["spec"]["containers"] for port in container.get("ports", ())}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_every_deployment_selects_its_own_pods_and_no_others() -> None:
    for deployment in of_kind("Deployment"):
        selector = deployment["spec"]["selector"]["matchLabels"]
        assert [pod for pod in pods() if selected(selector, pod)] == [deployment["spec"]["template"]]


def test_the_pods_of_a_training_talk_to_each_other_and_to_nobody_else() -> None:
    policy = find("NetworkPolicy", "training")["spec"]
    (rule,) = policy["ingress"]
    assert rule == {"from": [{"podSelector": policy["podSelector"]}]}
    (training,) = read("train-job.yaml")
    assert [pod for pod in pods() if selected(policy["podSelector"]["matchLabels"], pod)] == [
        training["spec"]["template"]
    ]


def port(deployment: str, container: str) -> int:
    found = containers(find("Deployment", deployment)["spec"]["template"])
    return next(one["ports"][0]["containerPort"] for one in found if one["name"] == container)


def test_nothing_comes_in_but_inference_from_anywhere_and_flows_to_vllm() -> None:
    everything, inference = (find("NetworkPolicy", name)["spec"] for name in ("nothing-comes-in", "inference"))
    assert (everything["podSelector"], everything["policyTypes"], everything.get("ingress")) == ({}, ["Ingress"], None)
    serving = [pod for pod in pods() if selected(inference["podSelector"]["matchLabels"], pod)]
    assert serving == [find("Deployment", "vllm")["spec"]["template"]]
    anyone, flows = inference["ingress"]
    assert [one["port"] for one in anyone["ports"]] == [port("vllm", "proxy")]
    assert "from" not in anyone
    assert [one["port"] for one in flows["ports"]] == [port("vllm", "vllm")]
    allowed = [pod for pod in pods() if selected(flows["from"][0]["podSelector"]["matchLabels"], pod)]
    assert allowed == [find("Deployment", "worker")["spec"]["template"]]


def test_flows_reach_vllm_and_the_world_reaches_the_proxy() -> None:
    ways = {name: find("Service", name)["spec"]["ports"][0]["targetPort"] for name in ("vllm", "inference")}
    assert ways == {"vllm": "vllm", "inference": "inference"}
    (worker,) = containers(find("Deployment", "worker")["spec"]["template"])
    url = next(one["value"] for one in worker["env"] if one["name"] == "SERVE_URL")
    assert url == f"http://vllm:{find('Service', 'vllm')['spec']['ports'][0]['port']}/v1"


def test_every_pod_has_an_identity_which_is_there_and_named_for_google() -> None:
    accounts = {account["metadata"]["name"]: account for account in of_kind("ServiceAccount")}
    assert {pod["spec"]["serviceAccountName"] for pod in pods()} == set(accounts)
    for name, account in accounts.items():
        identity = account["metadata"]["annotations"]["iam.gke.io/gcp-service-account"]
        assert identity == f"{name}@PROJECT.iam.gserviceaccount.com"


def test_only_the_worker_asks_anything_of_the_cluster() -> None:
    asks = [
        pod["spec"]["serviceAccountName"] for pod in pods() if pod["spec"].get("automountServiceAccountToken", True)
    ]
    assert asks == ["nothing-gpt-worker"]
    (binding,) = of_kind("RoleBinding")
    assert [subject["name"] for subject in binding["subjects"]] == asks
    assert not of_kind("ClusterRole")


def test_the_role_allows_what_the_doctor_asks_about() -> None:
    (role,) = of_kind("Role")
    allowed = {(rule["apiGroups"][0], rule["resources"][0]): tuple(rule["verbs"]) for rule in role["rules"]}
    assert allowed == PERMISSIONS


def test_every_secret_that_a_pod_reads_is_one_that_the_kustomization_tells_how_to_make() -> None:
    said = (FOLDER / "kustomization.yaml").read_text()
    told = {name: line for line in said.splitlines() for name in re.findall(r"create secret generic (\S+)", line)}
    wanted = references("secretKeyRef")
    assert {name for name, _ in wanted} == set(told)
    assert all(key in told[name] for name, key in wanted)


def test_every_setting_that_a_pod_reads_is_there() -> None:
    settings = find("ConfigMap", "settings")
    assert references("configMapKeyRef") == {("settings", key) for key in settings["data"]}


def test_every_mounted_volume_is_there_and_none_is_left_over() -> None:
    for pod in pods():
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert volumes == {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}


def test_no_pod_has_rights_that_it_does_not_need() -> None:
    for pod in pods():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in containers(pod):
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"]["drop"] == ["ALL"]
            assert rights["capabilities"].get("add", []) in ([], ["NET_BIND_SERVICE"])  # what "restricted" allows


def test_every_container_says_what_it_takes() -> None:
    for pod in pods():
        for container in containers(pod):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_vllm_starts_with_the_link_that_the_fetcher_makes_and_only_reads_there() -> None:
    pod = find("Deployment", "vllm")["spec"]["template"]
    adapter, fetcher, vllm, _ = containers(pod)
    folder = adapter["args"][adapter["args"].index("--folder") + 1]
    assert fetcher["args"] == [*adapter["args"], "--follow"]
    assert fetcher["restartPolicy"] == "Always"  # beside the containers, where `adapter` ends before they start
    assert "restartPolicy" not in adapter
    assert {"name": "ADAPTER_PATH", "value": f"{folder}/current"} in vllm["env"]
    mounts = [{m["name"]: m for m in one["volumeMounts"]}["adapters"] for one in (adapter, fetcher, vllm)]
    assert [(m["mountPath"], m.get("readOnly", False)) for m in mounts] == [(folder, False)] * 2 + [(folder, True)]


def test_vllm_is_never_on_a_node_that_training_wants() -> None:
    (training,) = read("train-job.yaml")
    spot = "cloud.google.com/gke-spot"
    wanted = training["spec"]["template"]["spec"]["nodeSelector"][spot]
    affinity = find("Deployment", "vllm")["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": spot, "operator": "NotIn", "values": [wanted]}]


def test_the_deployment_gke_is_for_the_worker_and_vllm_that_are_here() -> None:
    deployments = yaml.safe_load((FOLDER.parent / "deployments" / "prefect.yaml").read_text())["deployments"]
    deployment = next(one for one in deployments if one["name"] == "gke")
    (worker,) = containers(find("Deployment", "worker")["spec"]["template"])
    assert worker["command"][worker["command"].index("--pool") + 1] == deployment["work_pool"]["name"]
    _, _, vllm, _ = containers(find("Deployment", "vllm")["spec"]["template"])
    adapters = next(mount["mountPath"] for mount in vllm["volumeMounts"] if mount["name"] == "adapters")
    assert deployment["parameters"]["place"]["adapters_path"] == adapters


def test_vllm_is_asked_for_its_health_before_it_gets_requests() -> None:
    _, _, vllm, proxy = containers(find("Deployment", "vllm")["spec"]["template"])
    for container, probe in ((vllm, "startupProbe"), (vllm, "readinessProbe"), (proxy, "readinessProbe")):
        asked = container[probe]["httpGet"]
        assert (asked["path"], asked["port"]) == ("/health", container["ports"][0]["name"])
