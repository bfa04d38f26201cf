"""What the tests of training share: a training that is fresh, and a process that it leaves as it was. And a demo."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nothing_gpt.dpo.recipe import Training
from tests.chain import tiny
from tests.chain.processes import Command


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """Nothing is looked up, and nothing is told anybody; one thread, for several would wait for one another: on a busy
    machine they take three times as long."""
    import torch

    threads = torch.get_num_threads()
    variables = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.delenv("WANDB_API_KEY", raising=False)
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def deaf() -> Iterator[None]:
    """What a training does about SIGTERM ends with the test: it is a program's, for the rest of its process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def fresh(model: Path, tmp_path: Path) -> Training:
    return tiny.training(model, tmp_path)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a demo, run as it ships."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PREFECT_API_URL", "OMP_NUM_THREADS"):  # what the tests set
            patch.delenv(name, raising=False)
        running = Command("run", "--set", f"place.data={folder}", log=folder / "demo.log")
    running.finish(800)
    return folder
