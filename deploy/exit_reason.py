"""Why a worker's process ended, from its log and the kernel's count of out-of-memory kills."""

from __future__ import annotations

import re
from pathlib import Path

from baton.config.ray_names import FIRST_WORDS
from baton.deploy.processes import noted_process
from baton.logs import parse_line

# The lines in which Python, UCX and Ray report a fatal signal.
_DEADLY = re.compile(
    r"Fatal Python error: (?P<python>.+)|Caught signal \d+ \((?P<ucx>[^:)]+)|\*\*\* (?P<ray>SIG\w+) received"
)
# Lines that explain nothing to an operator: Ray's marks, stack addresses, lists of modules.
_NOISE = re.compile(r"^(:(actor|job|task)|\s|\[|=+|Extension modules|Current thread|Thread 0x|Fatal Python|\*\*\*|$)")


def exit_reason(log: str | None, killed_for_memory: bool, free_words: str, ray_error: str = "") -> str:
    """One clause: the signal or the last line of the log, and memory where that was the reason.

    Without a log on this machine (None) the process was on another node, or was never started: then the clause is the
    last line of `ray_error`, Ray's message. `free_words` says how much memory is free.
    """
    if log is None:
        words = [line.strip() for line in ray_error.splitlines() if line.strip()]
        return f"{words[-1] if words else 'its process ended'} (a log, if it wrote one, is on its node)"
    unlogged = [line for line in log.splitlines() if parse_line(line) is None]
    signal = next((found for found in map(_DEADLY.search, unlogged) if found), None)
    if signal:
        name = next(filter(None, signal.groups())).strip()
        memory = ": /dev/shm may be full" if name in ("Bus error", "SIGBUS") else ""
        return f"its process died of a {name}{memory}"
    if killed_for_memory:
        return f"its process was killed by the kernel for memory; {free_words}"
    lines = [line.strip() for line in map(_fatal, log.splitlines()) if not _NOISE.match(line)]
    if lines:
        return f"its process ended; the last line of its log: {lines[-1]}"
    return f"its process was killed without a message (SIGKILL), probably for memory; {free_words}"


def _fatal(line: str) -> str:
    """The message of a logged error, a line of another kind as it is, and "" for less severe log lines."""
    logged = parse_line(line)
    if logged is None:
        return line
    level, message = logged
    return message if level in ("ERROR", "CRITICAL") else ""


def log_of(name: str, folder: Path, since_s: float = 0.0) -> str | None:
    """The log of the worker's newest process that has ended, from Ray's folder of logs; None when there is none.

    Logs last written before `since_s`, in seconds of the Unix clock, belong to other clusters and are left out.
    """
    mark = FIRST_WORDS.format(name)
    written = sorted(folder.glob("worker-*.err"), key=lambda path: path.stat().st_mtime, reverse=True)
    fresh = [path for path in written if path.stat().st_mtime >= since_s]
    ended = [path for path in fresh if noted_process(name, int(path.stem.rpartition("-")[2])) is None]
    texts = (path.read_text(errors="replace") for path in ended)
    return next((text.rpartition(mark)[2].partition("\n")[2] for text in texts if mark in text), None)
