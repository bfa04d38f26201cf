"""The `nothing-gpt` program, called in this process."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from flows.server import prefect_server
from nothing_gpt.artifacts import Workshop
from nothing_gpt.config import Settings
from nothing_gpt.store import open_store


@dataclass
class Ended:
    """How the program ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line it complained with, and it printed nothing else there."""
        assert self.code == 1
        lines = [line for line in self.err.splitlines() if line]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")


Call = Callable[..., Ended]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls the program with arguments; `answer` is what is typed."""

    def run(*arguments: str, answer: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["nothing-gpt", *arguments])
        monkeypatch.setattr(sys, "stdin", StringIO(answer))
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def work(data: Path) -> Workshop:
    """The workshop of the program's data folder."""
    return Workshop(open_store(str(data / "store")), data / "work")


@pytest.fixture
def program(call: Call, data: Path) -> Call:
    """The program on the data folder."""
    return lambda *arguments, **answer: call(*arguments, "--set", f"place.data={data}", **answer)


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server of our own for all flows, those of child processes too."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    before = dict(os.environ)
    os.environ.pop("PREFECT_API_URL", None)
    data = tmp_path_factory.mktemp("prefect")
    try:
        with prefect_server(Settings.model_validate({"place": {"data": str(data)}})):
            names: dict[Any, str] = {
                PREFECT_API_URL: os.environ["PREFECT_API_URL"],
                PREFECT_HOME: os.environ["PREFECT_HOME"],
            }
            with temporary_settings(names):
                yield
    finally:
        os.environ.clear()
        os.environ.update(before)
