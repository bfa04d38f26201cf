"""Which cluster, and with whose credentials: what a kubeconfig may hold, and what is said of one that is of no use."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from nothing_gpt.config import GKESettings
from nothing_gpt.errors import FatalError
from tests.jobs.conftest import Told
from tests.jobs.fake_api import FakeApi

PLUGIN = """#!/bin/sh
echo >> {runs}
printf '%s' '{{"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1beta1", "status": '
printf '{{"token": "token-%s", "expirationTimestamp": "2026-01-01T00:00:00Z"}}}}' $(wc -l < {runs})
"""


@pytest.fixture
def kubeconfig(tmp_path: Path, fake: FakeApi) -> Path:
    return tmp_path / "kubeconfig"


def program(kubeconfig: Path, command: object) -> None:
    """The kubeconfig gets its credentials from a program, as one for GKE does."""
    config = yaml.safe_load(kubeconfig.read_text())
    version = "client.authentication.k8s.io/v1beta1"
    config["users"][0]["user"] = {"exec": {"apiVersion": version, "command": str(command), "interactiveMode": "Never"}}
    kubeconfig.write_text(yaml.safe_dump(config))


def test_credentials_that_expire_are_got_anew(kubeconfig: Path, fake: FakeApi, told: Told, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    plugin.write_text(PLUGIN.format(runs=tmp_path / "runs"))
    plugin.chmod(0o755)
    program(kubeconfig, plugin)
    gke = told.gke(GKESettings())
    gke.list()
    gke.list()
    first, second = fake.credentials
    assert first
    assert second
    assert first.startswith("Bearer token-")
    assert second.startswith("Bearer token-")
    assert first != second


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("command", ["no-such-program", "false", "echo"])
def test_a_program_that_gives_no_credentials_is_named_where_they_are_missed(
    kubeconfig: Path, fake: FakeApi, told: Told, command: str, status: int
) -> None:
    program(kubeconfig, command)
    fake.faults["list-jobs"] = [status]
    with pytest.raises(FatalError, match=r"no credentials came from .*install gke-gcloud-auth-plugin"):
        told.gke(GKESettings()).list()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "Invalid kube-config"),
        ("", "is empty"),
        ("a: [", "while parsing"),
        ("a text", "item assignment"),
        ("[1, 2]", "list indices"),
        ("contexts: 3", "not iterable"),
        ("{current-context: c, contexts: [{name: c}], clusters: [], users: []}", "context"),
    ],
)
def test_what_is_no_kubeconfig_is_one_line(kubeconfig: Path, told: Told, content: Any, reason: str) -> None:
    kubeconfig.unlink() if content is None else kubeconfig.write_text(content)
    with pytest.raises(
        FatalError, match=rf"^no cluster: .*{reason}.*; run `gcloud container clusters get-cred"
    ) as caught:
        told.gke(GKESettings()).list()
    assert "\n" not in str(caught.value)


def test_a_context_that_is_not_there_is_named(kubeconfig: Path, fake: FakeApi, told: Told) -> None:
    with pytest.raises(FatalError, match=r"^no cluster: .*elsewhere.*place\.gke\.context$"):
        told.gke(GKESettings(context="elsewhere")).list()
