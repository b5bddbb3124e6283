"""Processes that are noted in a file and recognised later, when a pid alone may belong to another process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import baton

POLL_S = 0.02
PYTHON = (sys.executable, "-P", "-m")  # Runs a module of this Baton, not of a `baton` in the working folder.


@dataclass(frozen=True, slots=True)
class NotedProcess:
    """The identity of a process: no other process has the same pid, start and boot."""

    name: str
    pid: int
    started_ticks: int  # Clock ticks from the machine's boot to the start of the process.
    boot: str  # Id of the machine's boot.

    @property
    def lives(self) -> bool:
        """Whether this very process runs; a zombie does not."""
        return self.boot == boot() and _started_ticks(self.pid) == self.started_ticks

    @staticmethod
    def from_json(values: Any) -> NotedProcess:
        """The process that `dataclasses.asdict` turned into `values`; raises `TypeError` for anything else."""
        process = NotedProcess(**values)
        texts, numbers = (process.name, process.boot), (process.pid, process.started_ticks)
        if not (all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)):
            raise TypeError("not a noted process")
        return process

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process, if it lives."""
        if self.lives:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def end(self, timeout_s: float) -> None:
        """Send SIGTERM, wait for at most `timeout_s`, then send SIGKILL."""
        self.signal(signal.SIGTERM)
        until_ended([self], timeout_s)
        self.signal(signal.SIGKILL)


def noted_process(name: str, pid: int) -> NotedProcess | None:
    """The process that has this pid now; None when there is none."""
    ticks = _started_ticks(pid)
    return None if ticks is None else NotedProcess(name, pid, ticks, boot())


def this_process(name: str) -> NotedProcess:
    """The calling process."""
    found = noted_process(name, os.getpid())
    assert found is not None, "/proc does not show this process"
    return found


def import_root() -> Path:
    """The folder that holds the package `baton`: the root of a checkout, or the site-packages where it is installed."""
    return Path(baton.__file__).resolve().parents[1]


def until_ended(processes: Iterable[NotedProcess], timeout_s: float) -> list[NotedProcess]:
    """Wait until processes have ended, zombies included; returns those that still run after `timeout_s`."""
    left, deadline = list(processes), time.monotonic() + timeout_s
    while (left := [process for process in left if process.lives]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def python_environment() -> dict[str, str]:
    """The environment of a Python process outside Ray that imports Baton."""
    path = os.pathsep.join([str(import_root()), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def boot() -> str:
    """The id of the machine's current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None for a missing process or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # Other errors do not mean that the process has ended.
        return None
    return None if fields[0] in "ZX" else int(fields[19])
