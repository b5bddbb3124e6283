"""The `baton` command, in the test's own process or as a process."""

from __future__ import annotations

import sys

import pytest

from baton.cli.admin_options import err, out
from baton.cli.main import app, run

# Background jobs of a script are started with Ctrl-C ignored; commands at a terminal are not.
CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
BATON = [sys.executable, "-c", f"{CTRL_C}; from baton.cli.main import main; main()"]


def widen(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """The commands of this process print lines of so many columns: a console reads COLUMNS when it is made."""
    for console in (out, err):
        monkeypatch.setattr(console, "_width", columns)


def baton(*arguments: str) -> int:
    """The exit code of `main` for these arguments."""
    return run(lambda: app(list(arguments)))
