"""Where figures come from: the machine, its load, the commit, and how often the code has changed since."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = "unknown"
# Publishing figures changes these files; that is not a change of the code that was measured.
GENERATED = (":!benchmarks/results", ":!docs", ":!README.md")


def machine() -> dict[str, str | int | float]:
    """The facts about this machine that two runs must share to be comparable."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "python": platform.python_version(),
    }


def load_average() -> float:
    """Runnable processes, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


def commit() -> tuple[str, bool | None]:
    """The commit of this checkout, and whether tracked files differ from it; ("unknown", None) without git."""
    name = _git("rev-parse", "--short=10", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *GENERATED)
    return (UNKNOWN, None) if name is None or changes is None else (name, bool(changes))


def commits_since(name: str, paths: Sequence[str]) -> int | None:
    """The number of commits to `paths` since the named one; None if git cannot tell (a tarball, a shallow clone)."""
    if name == UNKNOWN or not paths:
        return None
    if _git("merge-base", "--is-ancestor", name, "HEAD") is None:
        return None
    count = _git("rev-list", "--count", f"{name}..HEAD", "--", *paths)
    return None if count is None else int(count)


def _git(*words: str) -> str | None:
    """What git prints; None when it fails or is missing, or when this is another project's checkout."""
    command = ["git", "-c", "core.fsmonitor=false", *words]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
