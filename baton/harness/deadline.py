"""A deadline for a whole process and its children: a run that hangs ends with a sentence."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from types import FrameType

import psutil

GRACE_S = 20.0  # for `finally` blocks, which end what is not a child of this process (a Ray)


def enforce(limit_s: float, name: str, grace_s: float = GRACE_S) -> None:
    """End this process with code 1 after `limit_s`, with the stack of each thread and a message on stderr.

    The main thread unwinds as from `sys.exit`; processes that are still running `grace_s` later are killed. Call it
    from the main thread. It has no effect on a process that ends in time.
    """
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def unwind(number: int, frame: FrameType | None) -> None:
        raise SystemExit(1)

    def watch() -> None:
        time.sleep(limit_s)
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.write(
            f"{name} has not ended within {limit_s:g} s and is stopped; above is where it stood. "
            "Give it longer with --deadline-s SECONDS.\n"
        )
        sys.stderr.flush()
        signal.pthread_kill(main_thread, signal.SIGALRM)
        time.sleep(grace_s)
        end_children()
        os._exit(1)

    signal.signal(signal.SIGALRM, unwind)
    threading.Thread(target=watch, name="deadline", daemon=True).start()


def end_children() -> None:
    """Kill every descendant of this process."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
