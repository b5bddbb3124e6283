"""A worker that dies during the start is reported in one sentence; no output of Ray reaches the terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.live.test_command_line import BATON, ROOT

pytestmark = pytest.mark.ray


def _worker(before: set[str]) -> psutil.Process:
    """The process of prefill-0 in a Ray started since."""
    new = {str(path) for path in Path("/tmp").glob("baton-ray-*")} - before
    for log in (path for folder in new for path in Path(folder).glob("ray/session_*/logs/worker-*.err")):
        if "This is worker prefill-0." in log.read_text():
            return psutil.Process(int(log.stem.rpartition("-")[2]))
    raise AssertionError("no worker was started")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (
            signal.SIGKILL,
            "prefill-0 could not start: its process was killed without a message (SIGKILL), probably for memory",
        ),
        (signal.SIGBUS, "prefill-0 could not start: its process died of a SIGBUS: /dev/shm may be full"),
    ],
)
def test_up_says_why_a_worker_died(tmp_path: Path, number: signal.Signals, reason: str) -> None:
    environment = {**os.environ, "BATON_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "250"}
    before = {str(path) for path in Path("/tmp").glob("baton-ray-*")}
    with subprocess.Popen(
        [*BATON, "up", "--port", "0", "--admin-port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as up:
        try:
            assert up.stderr is not None
            line = ""
            while not re.search(r"prefill-0 +(loading|warming|registering)", line):
                line = up.stderr.readline()
                assert line, "`up` has ended"
            _worker(before).send_signal(number)
            output, errors = up.communicate(timeout=120)
        finally:
            subprocess.run([*BATON, "down"], env=environment, capture_output=True, timeout=60)
    assert up.returncode == 1
    assert reason in errors
    assert "raylet" not in errors + output
    assert [line for line in errors.splitlines() if line.startswith("[")] == []
    assert not (tmp_path / "cluster.json").exists()
