"""Settings of the whole suite."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import settings

RAY = "ray"
# CI tries the same examples each time, so that a failure belongs to the change; a developer's run tries new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `-n`: one process runs all tests of a file, or all that start a Ray. The longest come first."""
    if not hasattr(config, "workerinput"):
        return
    groups = {item: _group(item) for item in items}
    slow = {groups[item] for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (groups[item] != RAY, groups[item] not in slow))
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))


def _group(item: pytest.Item) -> str:
    uses_ray = item.get_closest_marker(RAY) or "ray_head" in getattr(item, "fixturenames", ())
    return RAY if uses_ray else item.nodeid.split("::")[0]


def pytest_collection_finish() -> None:
    """One thread computes, as in a worker: several wait for one another in a loop, and on a busy machine for long."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
