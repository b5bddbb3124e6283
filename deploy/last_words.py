"""Why a worker's process ended, from what it left in its log and what the kernel counted."""

from __future__ import annotations

import re
from pathlib import Path

from baton.config.ray_names import FIRST_WORDS
from baton.deploy.processes import noted_process
from baton.logs import parse_line

# How Python, UCX and Ray each report a deadly signal.
_DEADLY = re.compile(
    r"Fatal Python error: (?P<python>.+)|Caught signal \d+ \((?P<ucx>[^:)]+)|\*\*\* (?P<ray>SIG\w+) received"
)
# Ray's marks, addresses of stacks, lists of modules: nothing that a person could use.
_NOISE = re.compile(r"^(:(actor|job|task)|\s|\[|=+|Extension modules|Current thread|Thread 0x|Fatal Python|\*\*\*|$)")


def why_ended(log: str | None, killed_for_memory: bool, free_words: str, told: str = "") -> str:
    """One clause: the signal or the last line of the log, and memory where that was the reason.

    Without a log here (None) the process was on another node, or was never started: what Ray has `told` of it counts.
    """
    if log is None:
        words = [line.strip() for line in told.splitlines() if line.strip()]
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
    return f"its process was killed (SIGKILL leaves no word), probably for memory; {free_words}"


def _fatal(line: str) -> str:
    """The message of an error that was logged, a line that was not logged as it is, and nothing of the rest."""
    logged = parse_line(line)
    if logged is None:
        return line
    level, message = logged
    return message if level in ("ERROR", "CRITICAL") else ""


def log_of(name: str, folder: Path, since_s: float = 0.0) -> str | None:
    """What the worker's newest process that ended wrote to Ray's folder of logs; None when it has written nothing here.

    Logs not written to since `since_s`, in seconds of the Unix clock, are of other clusters.
    """
    mark = FIRST_WORDS.format(name)
    written = sorted(folder.glob("worker-*.err"), key=lambda path: path.stat().st_mtime, reverse=True)
    fresh = [path for path in written if path.stat().st_mtime >= since_s]
    ended = [path for path in fresh if noted_process(name, int(path.stem.rpartition("-")[2])) is None]
    texts = (path.read_text(errors="replace") for path in ended)
    return next((text.rpartition(mark)[2] for text in texts if mark in text), None)
