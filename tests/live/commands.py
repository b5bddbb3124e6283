"""The `baton` command as a user types it, and its leftovers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil

from tests.cli.commands import BATON

ROOT = Path(__file__).resolve().parents[2]


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
