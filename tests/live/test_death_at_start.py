"""A worker or rank that dies during the start is reported in one sentence; no output of Ray reaches the terminal."""

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


def _process(name: str, before: set[str]) -> psutil.Process:
    """The process of a worker, or of one of its ranks, in a Ray started since."""
    new = {str(path) for path in Path("/tmp").glob("baton-ray-*")} - before
    for log in (path for folder in new for path in Path(folder).glob("ray/session_*/logs/worker-*.err")):
        if f"This is worker {name}." in log.read_text():
            return psutil.Process(int(log.stem.rpartition("-")[2]))
    raise AssertionError(f"{name} was not started")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "victim", "number", "reason"),
    [
        (
            *(1, "prefill-0", signal.SIGKILL),
            "prefill-0 could not start: its process was killed without a message (SIGKILL), probably for memory",
        ),
        (
            *(1, "prefill-0", signal.SIGBUS),
            "prefill-0 could not start: its process died of a SIGBUS: /dev/shm may be full",
        ),
        (2, "prefill-0/1", signal.SIGKILL, "prefill-0 could not start: Rank 1 has ended."),
    ],
)
def test_up_says_why_a_worker_died(
    tmp_path: Path, ranks: int, victim: str, number: signal.Signals, reason: str
) -> None:
    environment = {**os.environ, "BATON_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "250"}
    before = {str(path) for path in Path("/tmp").glob("baton-ray-*")}
    with subprocess.Popen(
        [*BATON, "up", "--tensor-parallel", str(ranks), "--port", "0", "--admin-port", "0"],
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
            _process(victim, before).send_signal(number)
            output, errors = up.communicate(timeout=120)
        finally:
            subprocess.run([*BATON, "down"], env=environment, capture_output=True, timeout=60)
    assert up.returncode == 1
    assert reason in errors
    assert "raylet" not in errors + output
    assert [line for line in errors.splitlines() if line.startswith("[")] == []
    assert not (tmp_path / "cluster.json").exists()
