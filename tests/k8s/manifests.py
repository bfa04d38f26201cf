"""The files below k8s/ as objects."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "k8s"
Manifest = dict[str, Any]
LASTING = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
"""Files of what lasts in the cluster, in the order in which it is applied."""


def read(file: str) -> list[Manifest]:
    return list(yaml.safe_load_all((FOLDER / file).read_text()))


def lasting() -> list[Manifest]:
    return [manifest for file in LASTING for manifest in read(file)]


def find(kind: str, name: str) -> Manifest:
    return next(m for m in lasting() if m["kind"] == kind and m["metadata"]["name"] == name)


def of_kind(kind: str) -> list[Manifest]:
    return [manifest for manifest in lasting() if manifest["kind"] == kind]


def pods() -> list[Manifest]:
    """The pod templates, of the training Job too."""
    return [m["spec"]["template"] for m in [*of_kind("Deployment"), *read("train-job.yaml")]]


def containers(pod: Manifest) -> Iterator[Manifest]:
    yield from [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
