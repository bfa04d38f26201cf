"""The deployed app, imported as `modal deploy` imports it, and a fake of the cloud it runs in."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY
from tests.jobs.modal.fake_modal import Cloud


def import_app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("modal_app", REPOSITORY / "deployments" / "modal_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """Modal, with the app deployed; `nothing_gpt.jobs.modal` talks to it."""
    cloud = Cloud(tmp_path / "cloud", import_app())
    monkeypatch.setattr("nothing_gpt.jobs.modal.modal", cloud.client())
    return cloud
