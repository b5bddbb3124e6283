"""The `baton` command as a user types it, and its leftovers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
# A job in the background of a script is started with Ctrl-C ignored; a terminal's is not.
CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
BATON = [sys.executable, "-c", f"{CTRL_C}; from baton.cli.main import main; main()"]


def baton_command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BATON, *arguments], env=environment, capture_output=True, text=True, timeout=180)


def left_behind(folders_before: set[str]) -> list[str]:
    """Folders and processes of every Ray started since; the processes have the folder in their environment."""
    left = sorted({str(path) for path in Path("/tmp").glob("baton-ray-*")} - folders_before)
    for process in psutil.process_iter(["environ", "cmdline"]):
        folder = (process.info["environ"] or {}).get("BATON_RAY_FOLDER", "")
        if folder and folder not in folders_before:
            left.append(f"{folder}: {' '.join(process.info['cmdline'] or ())}")
    return left
