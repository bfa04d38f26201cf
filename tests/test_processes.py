"""Child processes: what they say, how they end, and that no way of dying leaves one behind."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nothing_gpt.processes import Child, free_port

REPOSITORY = Path(__file__).parent.parent
# Starts a grandchild, writes both process ids to the file named by argv[1], and sleeps.
FAMILY = """
import os, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open(sys.argv[1] + ".part", "w") as ids:
    print(os.getpid(), grandchild.pid, file=ids)
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(60)
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", textwrap.dedent(code), *arguments]


def within(seconds: float, condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def family(file: Path) -> list[int]:
    """The ids of a FAMILY, once it has written them."""
    assert within(20, file.exists)
    ids = [int(pid) for pid in file.read_text().split()]
    assert all(map(alive, ids))
    return ids


def all_gone(ids: list[int], seconds: float = 5) -> bool:
    return within(seconds, lambda: not any(map(alive, ids)))


def leash_of(child_id: int) -> int:
    return int(Path(f"/proc/{child_id}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_exit_code_is_the_commands_own(tmp_path: Path) -> None:
    with Child(python("raise SystemExit(3)"), tmp_path / "log") as child:
        assert child.wait(20) == 3
        assert child.returncode == 3
        assert not child.running


def test_a_command_ended_by_a_signal_has_the_shells_exit_code(tmp_path: Path) -> None:
    with Child(python("import os; os.kill(os.getpid(), 9)"), tmp_path / "log") as child:
        assert child.wait(20) == 128 + signal.SIGKILL


def test_stdout_and_stderr_go_to_the_log_and_the_tail_is_its_last_lines_with_text(tmp_path: Path) -> None:
    code = "import os; os.write(1, b'one\\ntwo\\n'); os.write(2, b'three\\n\\n')"
    with Child(python(code), tmp_path / "deep" / "log") as child:
        child.wait(20)
        assert child.tail(2) == ["two", "three"]


def test_a_second_child_adds_to_the_log_and_its_tail_holds_only_its_own_lines(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with Child(python(f"print('{word}')"), tmp_path / "log") as child:
            child.wait(20)
            assert child.tail() == [word]
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


def test_each_line_is_handed_over_while_the_command_still_runs(tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []
    code = """
        import os, sys, time
        print("a line", flush=True)
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.02)
        print("no newline at the end", end="")
    """
    with Child(python(code, str(tmp_path / "seen")), tmp_path / "log") as child:

        def on_line(line: str) -> None:
            seen.append((line, child.running))
            (tmp_path / "seen").touch()

        assert child.wait(20, on_line) == 0
    assert seen == [("a line", True), ("no newline at the end", False)]
    assert (tmp_path / "log").read_text() == "a line\nno newline at the end"


def test_waiting_too_long_is_a_timeout_and_leaves_the_command_running(tmp_path: Path) -> None:
    with Child(python("import time; time.sleep(60)"), tmp_path / "log") as child:
        with pytest.raises(TimeoutError, match="log"):
            child.wait(0.1)
        assert child.running


def test_the_command_gets_our_environment_with_the_given_additions_and_the_given_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "kept")
    code = "import os; print(os.environ['OURS'], os.environ['ADDED'], os.getcwd())"
    with Child(python(code), tmp_path / "log", env={"ADDED": "new"}, cwd=tmp_path) as child:
        child.wait(20)
        assert child.tail() == [f"kept new {tmp_path}"]


def test_a_command_that_does_not_exist_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot start no-such-program: .*No such file"):
        Child(["no-such-program"], tmp_path / "log")


def test_leaving_the_block_ends_the_child_and_its_children(tmp_path: Path) -> None:
    with Child(python(FAMILY, str(tmp_path / "ids")), tmp_path / "log"):
        ids = family(tmp_path / "ids")
    assert all_gone(ids)


def test_an_exception_in_the_block_ends_the_child_and_its_children(tmp_path: Path) -> None:
    def fail_while_it_runs() -> None:
        with Child(python(FAMILY, str(tmp_path / "ids")), tmp_path / "log"):
            family(tmp_path / "ids")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_it_runs()
    assert all_gone([int(pid) for pid in (tmp_path / "ids").read_text().split()])


def test_what_a_finished_command_left_running_is_ended(tmp_path: Path) -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid)"
    with Child(python(code), tmp_path / "log") as child:
        assert child.wait(20) == 0
        assert all_gone([int(child.tail(1)[0])])


def test_a_child_is_asked_first_and_may_finish_its_work(tmp_path: Path) -> None:
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(7)))
        print("ready", flush=True)
        time.sleep(60)
    """
    with Child(python(code), tmp_path / "log") as child:
        assert within(20, child.tail)
        assert child.stop() == 7
        assert child.tail(1) == ["saved"]


def test_a_child_that_ignores_the_request_is_killed_after_the_grace(tmp_path: Path) -> None:
    code = """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(60)
    """
    with Child(python(code), tmp_path / "log") as child:
        assert within(20, child.tail)
        assert child.stop(grace=0.2) == 128 + signal.SIGKILL


def test_a_child_started_from_a_thread_outlives_the_thread(tmp_path: Path) -> None:
    children: list[Child] = []
    command = python("import time; time.sleep(60)")
    thread = threading.Thread(target=lambda: children.append(Child(command, tmp_path / "log")))
    thread.start()
    thread.join()
    with children[0] as child:
        time.sleep(0.3)
        assert child.running


@pytest.mark.parametrize("from_a_thread", [False, True], ids=["", "started from a thread that has ended"])
def test_killing_the_parent_ends_the_child_and_its_children(tmp_path: Path, from_a_thread: bool) -> None:
    code = f"""
        import sys, threading, time
        from pathlib import Path
        sys.path.insert(0, {str(REPOSITORY)!r})
        from nothing_gpt.processes import Child

        def start():
            global child
            child = Child({python(FAMILY, str(tmp_path / "ids"))!r}, Path({str(tmp_path / "log")!r}))

        if {from_a_thread}:
            thread = threading.Thread(target=start)
            thread.start()
            thread.join()
        else:
            start()
        time.sleep(60)
    """
    with subprocess.Popen(python(code)) as parent:
        ids = family(tmp_path / "ids")
        leash = leash_of(ids[0])
        parent.kill()
    assert all_gone([*ids, leash])


def test_killing_the_leash_ends_the_child_and_its_children(tmp_path: Path) -> None:
    with Child(python(FAMILY, str(tmp_path / "ids")), tmp_path / "log") as child:
        ids = family(tmp_path / "ids")
        os.kill(leash_of(child.pid), signal.SIGKILL)
        assert all_gone(ids)
        assert within(5, lambda: child.returncode == 128 + signal.SIGKILL)


def test_two_children_do_not_keep_each_other_alive(tmp_path: Path) -> None:
    with Child(python("import time; time.sleep(60)"), tmp_path / "a") as first:
        with Child(python("import time; time.sleep(60)"), tmp_path / "b") as second:
            first.stop()
            assert second.running
        assert not second.running


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
