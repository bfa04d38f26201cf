"""A group of two processes that do nothing but end: when its agent starts them again, and how the group ends.

Trainings as a group are in `tests/chain/test_group.py`.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.launcher import RESTARTS, launch
from nothing_gpt.processes import Child
from nothing_gpt.ranks import ENDPOINT
from tests.conftest import REPOSITORY
from tests.test_processes import all_gone, within

AGENT = """
import sys
from nothing_gpt.launcher import launch
sys.exit(launch([sys.executable, "-c", *sys.argv[1:]], "group", 2, 1))
"""
RANK = """
import os, signal, sys, time
tries = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
with open("started", "a") as file:
    file.write(os.environ["RANK"])
if tries == int(sys.argv[2]):
    sys.exit()
if os.environ["RANK"] == "1":
    time.sleep(3600)
code = int(sys.argv[1])
sys.exit(code) if code < 128 else os.kill(os.getpid(), code - 128)
"""
"""Until the try in which all goes well (-1: never) the first ends with a code, while the second works on."""


EARLY = """
import os, pathlib, time
from nothing_gpt import ranks
pathlib.Path(f"started-{os.getpid()}").touch()
while not os.path.exists("go"):
    time.sleep(0.02)
ranks.end_with_agent()
pathlib.Path(f"survived-{os.getpid()}").touch()
"""


@pytest.mark.parametrize(
    ("code", "mended_in", "ended", "starts"),
    [
        (1, -1, 1, 1),
        (75, -1, 75, 1 + RESTARTS),
        (128 + 9, 1, 0, 2),
    ],
    ids=["bad settings", "transient, always", "killed, once"],
)
def test_a_group_is_started_again_where_that_may_mend_it(
    tmp_path: Path, code: int, mended_in: int, ended: int, starts: int
) -> None:
    command = [sys.executable, "-c", AGENT, RANK, str(code), str(mended_in)]
    with Child(command, tmp_path / "log", {"PYTHONPATH": str(REPOSITORY)}, cwd=tmp_path) as agent:
        assert agent.wait(300) == ended, agent.log.read_text()
    assert (tmp_path / "started").read_text().count("0") == starts


@pytest.mark.parametrize(
    ("number", "ended"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, TransientError.exit_code), (signal.SIGINT, 130)],
    ids=["killed", "asked to stop", "Ctrl-C"],
)
def test_no_process_outlives_its_agent_however_early_that_ends(
    tmp_path: Path, number: signal.Signals, ended: int
) -> None:
    """Nor one that was still at its imports when the agent was killed, so that the kernel told it nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", AGENT, EARLY], env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, cwd=tmp_path
    ) as agent:
        assert within(120, lambda: len(list(tmp_path.glob("started-*"))) == 2)
        agent.send_signal(number)
        assert agent.wait(120) == ended
    (tmp_path / "go").touch()
    assert all_gone([int(path.name.partition("-")[2]) for path in tmp_path.glob("started-*")], 120)
    assert not list(tmp_path.glob("survived-*"))


def test_several_machines_need_an_address_to_meet_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    with pytest.raises(FatalError, match=r"training.nodes=2: this is one machine, .* train with place.kind=gke"):
        launch([], "group", 1, 2)
