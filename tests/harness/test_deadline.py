"""A benchmark that hangs is ended: with a stack trace, an error message and no child processes left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from baton.harness.provenance import ROOT
from tests.waiting import until

HANGS = """
import asyncio, subprocess, sys, time
from pathlib import Path
from baton.harness import deadline

async def wait_for_nothing():
    await asyncio.Event().wait()

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(sys.argv[1]).write_text(str(child.pid))
deadline.enforce(1.0, "hanging", grace_s=float(sys.argv[2]))
try:
    asyncio.run(wait_for_nothing())
finally:
    print("taken down", flush=True)
    while sys.argv[3] == "stuck":
        time.sleep(0.1)
    child.kill()
"""


@pytest.mark.parametrize("ending", ["unwinds", "stuck"])
def test_a_hanging_benchmark_ends_with_an_error_message_and_no_child_processes(ending: str, tmp_path: Path) -> None:
    program, pid = tmp_path / "hanging.py", tmp_path / "pid"
    program.write_text(HANGS)
    grace_s = "1" if ending == "stuck" else "60"
    command = [sys.executable, str(program), str(pid), grace_s, ending]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "hanging has not ended within 1 s and is stopped" in done.stderr
    assert "wait_for_nothing" in done.stderr or "asyncio" in done.stderr  # where it stood
    assert "taken down" in done.stdout
    child = int(pid.read_text())
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE, timeout_s=5)


def test_a_real_benchmark_ends_at_the_deadline_it_is_given(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.reliability.fuzz", "--minutes", "5", "--deadline-s", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "tests.reliability.fuzz has not ended within 2 s" in done.stderr
    assert "--deadline-s" in done.stderr
