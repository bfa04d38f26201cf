"""The `nothing-gpt` program, called in this process."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows.cli import main
from nothing_gpt.artifacts import Workshop
from nothing_gpt.store import open_store
from tests.conftest import new_database
from tests.flows.fakes import Engines, engines

if TYPE_CHECKING:
    from tests.flows.ui import UI  # imports Prefect, which must not be there before its server is


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


@pytest.fixture
def place(tmp_path: Path, prefect: None) -> Iterator[Engines]:
    """The place of a run whose engines are fakes."""
    with engines(tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def ui(prefect: None, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[UI]":
    """`make ui` for all tests of it; each leaves it up."""
    from tests.flows.ui import UI

    ui = UI(tmp_path_factory.mktemp("ui"))
    new_database(ui.data / "prefect" / "prefect.db")
    ui.tell("up")
    yield ui
    ui.tell("down")
    assert ui.processes() == []
