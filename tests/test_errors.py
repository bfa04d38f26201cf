"""How a program ends that is asked to stop."""

import subprocess
import sys

from nothing_gpt.errors import TransientError

STOPPED = """
import os, signal
from nothing_gpt.errors import stop_at_once
signal.signal(signal.SIGTERM, stop_at_once)
try:
    os.kill(os.getpid(), signal.SIGTERM)
except Exception:  # as libraries do
    pass
print("went on")
"""


def test_a_stop_at_once_is_swallowed_by_no_library() -> None:
    ended = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, timeout=60)
    assert ended.returncode == TransientError.exit_code
    assert (ended.stdout, ended.stderr) == ("", "error: asked to stop; run again to go on\n")
