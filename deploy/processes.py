"""Processes as they are noted in a file, and believed later: a pid alone may belong to another process by then."""

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
PYTHON = (sys.executable, "-P", "-m")  # for a module of ours; a `baton` in the working folder is not


@dataclass(frozen=True, slots=True)
class NotedProcess:
    """A process for good: no other one has the same pid, start and boot."""

    name: str
    pid: int
    started_ticks: int  # clock ticks from the start of the machine to its own
    boot: str  # another one after each start of the machine

    @property
    def lives(self) -> bool:
        """Whether this very process runs; one that ended and waits for its parent does not."""
        return self.boot == boot() and _started_ticks(self.pid) == self.started_ticks

    @staticmethod
    def from_json(values: Any) -> NotedProcess:
        """What `dataclasses.asdict` made of one; raises `TypeError` for anything else."""
        process = NotedProcess(**values)
        texts, numbers = (process.name, process.boot), (process.pid, process.started_ticks)
        if not (all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)):
            raise TypeError("This is not a process.")
        return process

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process, if it lives."""
        if self.lives:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def end(self, timeout_s: float) -> None:
        """Ask it to end, wait, and end it when the time is over."""
        self.signal(signal.SIGTERM)
        until_ended([self], timeout_s)
        self.signal(signal.SIGKILL)


def noted_process(name: str, pid: int) -> NotedProcess | None:
    """The process that has this pid now; None when it does not live."""
    ticks = _started_ticks(pid)
    return None if ticks is None else NotedProcess(name, pid, ticks, boot())


def this_process(name: str) -> NotedProcess:
    """The process that asks."""
    found = noted_process(name, os.getpid())
    assert found is not None, "/proc does not show this process"
    return found


def import_root() -> Path:
    """The folder that holds the package `baton`: the root of a checkout, or the site-packages where it is installed."""
    return Path(baton.__file__).resolve().parents[1]


def until_ended(processes: Iterable[NotedProcess], timeout_s: float) -> list[NotedProcess]:
    """Wait for processes to end, whether or not their parents have waited for them; returns those that still run."""
    left, deadline = list(processes), time.monotonic() + timeout_s
    while (left := [process for process in left if process.lives]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def python_environment() -> dict[str, str]:
    """For a Python process of ours that is no part of a Ray: it finds Baton."""
    path = os.pathsep.join([str(import_root()), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def boot() -> str:
    """The id of this start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None for a process that is not there, or has ended and waits for its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # another error says nothing about the process
        return None
    return None if fields[0] in "ZX" else int(fields[19])
