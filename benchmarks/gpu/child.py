"""Runs one part in its own process, so that a crash or a hang does not affect other parts."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from benchmarks.gpu.figures import EXPECTED
from benchmarks.gpu.parts import PartPlan


def measure(plan: PartPlan, options: dict[str, Any]) -> None:
    """Run the part here, with what `Options` takes; this process becomes the first of a process group of its own.

    Libraries and further processes print to the log; only progress lines reach the screen.
    """
    os.setpgid(0, 0)
    screen = os.fdopen(os.dup(1), "w", errors="replace")
    with options["log"].open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    # The log gets the last words of a process that is killed.
    sys.stdout = os.fdopen(1, "w", buffering=1, errors="replace", closefd=False)
    os.environ["PYTHONUNBUFFERED"] = "1"
    from benchmarks.gpu.part import Options, Part

    part = Part(plan.name, Options(**options), screen)
    part.save()
    try:
        import_module(plan.module).run(part)
    except Exception as error:  # noqa: BLE001 - told in the table
        missing = [figure for figure in EXPECTED[plan.name](part.sizes) if figure not in part.result.figures]
        part.fail(part.result.doing, missing, error)
    part.result.doing = ""
    part.save()
