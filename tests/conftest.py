"""Settings of the whole suite."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
MARK = "pytest.mark.ray"
# CI tries the same examples each time, so that a failure belongs to the change; a developer's run tries new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadfile`: one process runs all tests of a file, or of all files that start a Ray."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    scheduler: Any = LoadScopeScheduling(config, log)
    scheduler._split_scope = _group
    return scheduler


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the processes of `-n`, the longest come first: no process runs alone at the end."""
    for item in items:
        if "ray_head" in getattr(item, "fixturenames", ()) and not _starts_ray(_file(item.nodeid)):
            raise pytest.UsageError(f"{item.nodeid} starts a Ray: its file needs the mark {MARK}.")
    if hasattr(config, "workerinput"):
        slow = {_file(item.nodeid) for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (not _starts_ray(_file(item.nodeid)), _file(item.nodeid) not in slow))


def _file(nodeid: str) -> str:
    return nodeid.split("::")[0]


def _group(nodeid: str) -> str:
    return "ray" if _starts_ray(_file(nodeid)) else _file(nodeid)


@cache
def _starts_ray(file: str) -> bool:
    return MARK in (ROOT / file).read_text()


def pytest_collection_finish() -> None:
    """One thread computes, as in a worker: several wait for one another in a loop, and on a busy machine for long."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
