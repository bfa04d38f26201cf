"""The vLLM on Modal brought to another adapter: what is put on the volume, and with what the app is deployed."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from modal import exception

from nothing_gpt.adapters import CONFIG, WEIGHTS
from nothing_gpt.config.place import ModalSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.jobs.modal_serve import ADAPTERS, Endpoint
from nothing_gpt.loading import load_settings
from nothing_gpt.serve.switch import Redeployed
from tasks.place import ModalPlace
from tests.fake_vllm import save_adapter
from tests.jobs.modal.fake_modal import Cloud

KEY = "train/0123456789abcdef"


@pytest.fixture
def deployments(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The environment of each `modal deploy`."""
    found: list[dict[str, str]] = []

    def run(command: list[str], cwd: Path, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "modal", "deploy"]
        assert (cwd / command[4]).is_file()
        found.append(env)
        failed = env["BASE_MODEL"] == "broken"
        return subprocess.CompletedProcess(command, int(failed), "", "building\nno such secret\n" if failed else "")

    monkeypatch.setattr(subprocess, "run", run)
    return found


def endpoint(base: str = "base") -> Endpoint:
    return Endpoint(ModalSettings(environment="main"), base, "c0ffee")


def test_the_adapter_is_on_the_volume_before_the_app_is_deployed_with_its_path(
    cloud: Cloud, deployments: list[dict[str, str]], tmp_path: Path
) -> None:
    folder = save_adapter(tmp_path / KEY, 0.5)
    assert endpoint().deployed() is None
    endpoint().deploy(folder)
    for name in (CONFIG, WEIGHTS):
        assert (cloud.volume / "adapters" / KEY / name).read_bytes() == (folder / name).read_bytes()
    assert endpoint().deployed() == f"{ADAPTERS}/{KEY}"
    (given,) = deployments
    assert given["ADAPTER_PATH"] == f"{ADAPTERS}/{KEY}"
    assert (given["BASE_MODEL"], given["BASE_REVISION"], given["MODAL_ENVIRONMENT"]) == ("base", "c0ffee", "main")


def test_a_deployment_that_fails_is_one_line(cloud: Cloud, deployments: list[dict[str, str]], tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=r"`modal deploy deployments/modal_app.py` failed: no such secret"):
        endpoint("broken").deploy(save_adapter(tmp_path / KEY, 0.5))


def test_without_an_account_nothing_is_deployed(
    cloud: Cloud, deployments: list[dict[str, str]], tmp_path: Path
) -> None:
    cloud.refuses = exception.AuthError("token")
    with pytest.raises(FatalError, match="run `modal token new`"):
        endpoint().deploy(save_adapter(tmp_path / KEY, 0.5))
    assert deployments == []


def test_the_place_promotes_to_it_where_its_address_is_given(tmp_path: Path) -> None:
    overrides = ["place.kind=modal", f"place.data={tmp_path}", "place.serve_url=http://here/v1"]
    assert ModalPlace(load_settings(None, overrides)).running_server().replicas == ()
    (there,) = (
        ModalPlace(load_settings(None, [*overrides, "place.modal.serve_url=https://there/v1"]))
        .running_server()
        .replicas
    )
    assert isinstance(there, Redeployed)
    assert (there.url, there.path(tmp_path / KEY)) == ("https://there/v1", f"{ADAPTERS}/{KEY}")
