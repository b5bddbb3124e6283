"""One attempt of the supervisor to start the cluster again: a process, its end, and its lack of progress."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from baton.logs import parse_line

STALLED_S = 600.0  # A start logs each stage, and each percent of a load.
END_S = 30.0  # Time that a stalled attempt has to end what it started.

Outcome = tuple[Literal["running", "done", "failed"], str]  # The text is the reason of a failure.


class Attempt:
    """A process that logs a line to `log` whenever it makes progress; when it fails, the last line is the reason."""

    def __init__(self, command: Sequence[str], log: Path, now_s: float, stalled_s: float = STALLED_S) -> None:
        self._log, self._stalled_s = log, stalled_s
        self._written, self._progress_s = self._size(), now_s
        self._stalled = False
        self._process = subprocess.Popen(command)

    def outcome(self, now_s: float) -> Outcome:
        """The state of the process now. One without progress gets SIGTERM, and SIGKILL `END_S` later."""
        code = self._process.poll()
        if code is not None:
            return ("failed", self._why()) if code else ("done", "")
        written = self._size()
        if written != self._written and not self._stalled:
            self._written, self._progress_s = written, now_s
        waited_s = now_s - self._progress_s
        self._stalled = waited_s > self._stalled_s
        if waited_s > self._stalled_s + END_S:
            self._process.kill()
        elif self._stalled:
            self._process.terminate()
        return "running", ""

    def end(self) -> None:
        """Send SIGTERM and wait until the process has ended."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _size(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            return 0

    def _why(self) -> str:
        if self._stalled:
            return f"no progress within {self._stalled_s:.0f} s"
        try:
            lines = self._log.read_text(errors="replace").strip().splitlines()
        except OSError as error:
            return f"{self._log} cannot be read: {error.strerror}"
        if not lines:
            return ""
        logged = parse_line(lines[-1])
        return logged[1] if logged is not None else lines[-1]
