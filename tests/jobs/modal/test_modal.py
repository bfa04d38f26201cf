"""Training on Modal, against a fake of its client which runs the app's own function in containers that come and go."""

import functools
import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modal import exception

from nothing_gpt.adapters import adapter_digest
from nothing_gpt.config.place import ModalSettings
from nothing_gpt.errors import FatalError, Killed, TransientError
from nothing_gpt.jobs import modal_worker
from nothing_gpt.jobs.modal import modal_run
from tests.conftest import REPOSITORY
from tests.fake_vllm import save_adapter, save_base
from tests.jobs.modal import trainee
from tests.jobs.modal.conftest import import_app
from tests.jobs.modal.fake_modal import Cloud

pytestmark = pytest.mark.filterwarnings("ignore:The train function is executing locally:UserWarning")

MODULE = "tests.jobs.modal.trainee"
RUN = "0123456789abcdef"
Train = Callable[..., Path]
KILLED = """
import os, signal, sys
from pathlib import Path
from nothing_gpt.jobs import modal
from tests.jobs.modal.conftest import import_app
from tests.jobs.modal.fake_modal import Cloud
from tests.jobs.modal.test_modal import ask

cloud = Cloud(Path(sys.argv[1], "cloud"), import_app())
cloud.before_get = lambda: os.kill(os.getpid(), signal.SIGKILL)
modal.modal = cloud.client()
ask(Path(sys.argv[1]), "finish")
"""


def ask(folder: Path, *plan: str, base: str | None = None, gpus: int = 1, **settings: Any) -> Path:
    """Asks for a training as `dpo/train.py` does, with what each of its tries is to do; returns the adapter's
    folder."""
    work = folder / "work" / RUN
    work.mkdir(parents=True, exist_ok=True)
    (work / "_settings.json").write_text(json.dumps({"training": {"plan": plan}}))
    places = {
        "SFT_ADAPTER_PATH": str(folder / "sft"),
        "ADAPTER_PATH": str(work / "_adapter"),
        "DPO_DATA_PATH": str(folder / "data"),
        "BASE_MODEL": base or str(folder / "base"),
        "BASE_REVISION": "c0ffee",
    }
    arguments = ["--settings", str(work / "_settings.json"), "--work", str(work / "_work")]
    arguments += ["--run", RUN, "--store", "a store of this machine"]
    modal_run(ModalSettings(**settings), gpus)(MODULE, arguments, places, log(folder))
    return work / "_adapter"


def log(folder: Path) -> Path:
    return folder / "work" / RUN / "_train.log"


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """`ask`, with all that a training reads in place."""
    save_adapter(tmp_path / "sft", 0.25)
    save_base(tmp_path / "base")
    (tmp_path / "data").mkdir()
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / "data" / name).write_text(name)
    (tmp_path / "data" / "judged.jsonl").write_text("is of no use to training")
    return functools.partial(ask, tmp_path)


def test_a_training_comes_back_whole_and_leaves_only_the_base_model(
    cloud: Cloud, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = train("finish")
    assert adapter_digest(adapter) == adapter_digest(tmp_path / "sft"), "what this trainer makes"
    assert {path.relative_to(adapter).as_posix() for path in adapter.rglob("*") if path.is_file()} == {
        "adapter_config.json", "adapter_model.safetensors", "metrics.json", "tracking/events",
    }  # fmt: skip
    assert [path.name for path in (cloud.volume / "runs").iterdir()] == []
    assert [path.name for path in adapter.parent.iterdir() if path.name.endswith(".call")] == []
    said = capsys.readouterr().err
    assert "train: on Modal as call fc-1" in said
    assert "at c0ffee" in said


def test_a_training_on_several_gpus_gets_a_container_that_has_them(cloud: Cloud, train: Train) -> None:
    train("finish", gpus=2)
    assert cloud.gpus == ["L4:2"]


def test_its_log_is_here_each_line_once(cloud: Cloud, train: Train, tmp_path: Path) -> None:
    train("stop", "finish")
    lines = log(tmp_path).read_text().splitlines()
    assert [line for line in lines if line.startswith("try ")] == ["try 0: stop", "try 1: finish"]
    assert lines.count("error: asked to stop") == 1
    assert sum("base " in line for line in lines) == 1


def test_no_more_is_put_on_the_volume_than_training_reads(cloud: Cloud, train: Train) -> None:
    train("finish", base="meta-llama/Llama-3.2-3B")
    (files,) = cloud.uploads
    assert sorted(files) == [
        f"/runs/{RUN}/inputs/{name}"
        for name in ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "data/train.jsonl",
                     "data/val.jsonl", "settings.json")
    ]  # fmt: skip


def test_a_base_model_that_is_a_folder_is_put_there_once(
    cloud: Cloud, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FatalError):
        train("fail")
    train("finish", "finish")
    assert sum("/bases/" in files[0] and len(files) > 1 for files in cloud.uploads) == 1
    assert capsys.readouterr().err.count("putting the base model") == 1


def test_no_secret_is_on_the_volume_or_among_the_arguments(
    cloud: Cloud, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_5ecret")
    monkeypatch.setenv("WANDB_API_KEY", "5ecret")
    with pytest.raises(FatalError):
        train("fail")
    assert b"5ecret" not in cloud.calls["fc-1"].argument
    files = [path for path in cloud.volume.rglob("*") if path.is_file()]
    assert files
    assert not any(b"5ecret" in path.read_bytes() for path in files)


def test_a_failure_is_its_own_line(cloud: Cloud, train: Train) -> None:
    with pytest.raises(FatalError, match=rf"^{MODULE}: train.jsonl, line 3: no chosen side$"):
        train("fail")
    assert cloud.containers == 1, "what no other try mends is not tried again"


def test_a_failure_is_not_remembered(cloud: Cloud, train: Train) -> None:
    with pytest.raises(FatalError):
        train("fail")
    train("finish")
    assert [*cloud.calls] == ["fc-1", "fc-2"]


def test_too_little_memory_is_told_apart(cloud: Cloud, train: Train) -> None:
    with pytest.raises(Killed, match="memory may have run out"):
        train("eat")


def test_interrupted_for_good_it_can_be_run_again(cloud: Cloud, train: Train) -> None:
    cloud.retries = 1
    with pytest.raises(TransientError, match="was interrupted and saved a checkpoint; run again to go on"):
        train("stop", "stop", "finish")
    metrics = json.loads((train("stop", "stop", "finish") / "metrics.json").read_text())
    assert metrics == {"tries": 3}, "it went on from the earlier call's checkpoint"


def test_preempted_it_goes_on_from_what_was_committed(cloud: Cloud, train: Train) -> None:
    cloud.preempt_at = trainee.READY
    metrics = json.loads((train("wait", "finish") / "metrics.json").read_text())
    assert metrics == {"tries": 2}
    assert (cloud.containers, len(cloud.calls)) == (2, 1)


def test_a_checkpoint_is_committed_while_training_goes_on(
    cloud: Cloud, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modal_worker, "COMMIT_SECONDS", 0)
    seen = []
    commits = Cloud.committed

    def committed(self: Cloud) -> None:
        seen.append((self.volume / "runs" / RUN / "checkpoints" / RUN / "tries").exists())
        commits(self)

    monkeypatch.setattr(Cloud, "committed", committed)
    cloud.preempt_at = trainee.READY
    train("wait", "finish")
    assert True in seen


def test_killed_it_finds_its_call_again(
    cloud: Cloud, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=REPOSITORY, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    cloud = Cloud(tmp_path / "cloud", import_app())
    monkeypatch.setattr("nothing_gpt.jobs.modal.modal", cloud.client())
    train("finish")
    assert [*cloud.calls] == ["fc-1"]
    assert cloud.containers == 1


def test_without_the_network_the_call_is_left_alone_and_found_again(cloud: Cloud, train: Train) -> None:
    def cut() -> None:
        cloud.before_get = lambda: None
        raise exception.ConnectionError("no route")

    cloud.unreachable_logs = True
    cloud.before_get = cut
    with pytest.raises(TransientError, match=r"Modal cannot be reached \(no route\); run again to go on"):
        train("finish")
    train("finish")
    assert [*cloud.calls] == ["fc-1"]
    assert not cloud.calls["fc-1"].cancelled


def test_a_call_that_modal_has_forgotten_is_made_again(cloud: Cloud, train: Train, tmp_path: Path) -> None:
    log(tmp_path).parent.mkdir(parents=True)
    (tmp_path / "work" / RUN / "_work.call").write_text("fc-of-last-month")
    train("finish")
    assert [*cloud.calls] == ["fc-1"]


def test_interrupted_by_a_person_it_cancels_its_call(
    cloud: Cloud, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        cloud.before_get = lambda: None
        raise KeyboardInterrupt

    cloud.before_get = interrupt
    with pytest.raises(KeyboardInterrupt):
        train("finish")
    assert cloud.calls["fc-1"].cancelled
    assert "call fc-1 on Modal is cancelled" in capsys.readouterr().err
    train("finish")
    assert [*cloud.calls] == ["fc-1", "fc-2"]


def test_a_call_that_never_ends_is_cancelled(cloud: Cloud, train: Train) -> None:
    with pytest.raises(FatalError, match=r"no end after 1e-09 h on Modal; raise place\.modal\.running_hours"):
        train("finish", running_hours=1e-9)
    assert cloud.calls["fc-1"].cancelled


def test_one_that_cannot_be_cancelled_is_said_to_run_on(
    cloud: Cloud, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt_and_cut() -> None:
        cloud.refuses = exception.ConnectionError("no route")
        raise KeyboardInterrupt

    cloud.before_get = interrupt_and_cut
    with pytest.raises(KeyboardInterrupt):
        train("finish")
    assert "call fc-1 on Modal is NOT cancelled (no route)" in capsys.readouterr().err


def test_a_call_that_somebody_else_cancelled_says_so(cloud: Cloud, train: Train) -> None:
    cloud.unreachable_logs = True
    cloud.before_get = lambda: setattr(cloud.calls["fc-1"], "cancelled", True)
    with pytest.raises(FatalError, match="Modal says: the call was cancelled; `modal app logs nothing-gpt`"):
        train("finish")


def test_a_damaged_download_is_no_adapter_and_is_fetched_again(cloud: Cloud, train: Train, tmp_path: Path) -> None:
    cloud.damaged = {"adapter_model.safetensors"}
    with pytest.raises(TransientError, match=r"adapter_model\.safetensors came damaged"):
        train("finish")
    folder = tmp_path / "work" / RUN
    assert sorted(path.name for path in folder.iterdir()) == ["_settings.json", "_train.log"]
    cloud.damaged = set()
    metrics = json.loads((train("finish") / "metrics.json").read_text())
    assert metrics == {"tries": 1}, "nothing was trained again"


def test_an_adapter_that_is_damaged_on_the_volume_is_made_again(cloud: Cloud, train: Train) -> None:
    def damage() -> None:
        for kept in cloud.volume.glob("runs/*/adapter/metrics.json"):
            kept.unlink()
            cloud.before_get = lambda: None

    cloud.before_get = damage
    with pytest.raises(TransientError, match=r"metrics\.json came damaged"):
        train("finish", "finish")
    assert json.loads((train("finish", "finish") / "metrics.json").read_text()) == {"tries": 2}


def test_inputs_that_are_damaged_on_the_volume_are_refused(cloud: Cloud, train: Train) -> None:
    def damage() -> None:
        (cloud.volume / "runs" / RUN / "inputs" / "data" / "val.jsonl").write_text("other")

    cloud.before_get = damage
    with pytest.raises(FatalError, match=rf"runs/{RUN}/inputs/data/val\.jsonl is damaged on the volume"):
        train("finish")


def test_an_app_with_other_code_is_refused(cloud: Cloud, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nothing_gpt.jobs.modal.code_digest", lambda: "other")
    with pytest.raises(FatalError, match=r"has other code than yours; run `modal deploy deployments/modal_app\.py`"):
        train("finish")


@pytest.mark.parametrize(
    ("refusal", "line"),
    [
        (
            exception.AuthError("Token missing."),
            "place.kind=modal: no account, or its token is not valid; run `modal token new`",
        ),
        (
            exception.PermissionDeniedError("not your app\nmore"),
            "train: Modal says: not your app; `modal app logs nothing-gpt` may tell more",
        ),
    ],
)
def test_what_modal_refuses_is_one_line(cloud: Cloud, train: Train, refusal: Exception, line: str) -> None:
    cloud.refuses = refusal
    with pytest.raises(FatalError) as error:
        train("finish")
    assert str(error.value) == line


def test_without_the_app_it_says_what_to_do_and_uploads_nothing(cloud: Cloud, train: Train) -> None:
    cloud.deployed = False
    with pytest.raises(FatalError) as error:
        train("finish", environment="dev")
    line = (
        "place.modal: no app nothing-gpt with `train` in environment dev; run `modal deploy deployments/modal_app.py`"
    )
    assert str(error.value) == line
    assert cloud.uploads == []


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nothing_gpt.jobs.modal")
    monkeypatch.setitem(sys.modules, "modal", None)
    with pytest.raises(FatalError, match=r"needs the package modal; pip install 'nothing-gpt\[modal\]'"):
        importlib.import_module("nothing_gpt.jobs.modal")


def test_a_missing_file_is_said_before_anything_is_asked(cloud: Cloud, train: Train, tmp_path: Path) -> None:
    (tmp_path / "data" / "val.jsonl").unlink()
    with pytest.raises(FatalError, match=r"val\.jsonl: cannot read it"):
        train("finish")
    assert (cloud.calls, cloud.uploads) == ({}, [])
