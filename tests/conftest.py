"""Settings of the whole suite."""

from __future__ import annotations

import os
import sys

from hypothesis import settings

# CI tries the same examples each time, so that a failure belongs to the change; a developer's run tries new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_collection_finish() -> None:
    """One thread computes, as in a worker: several wait for one another in a loop, and on a busy machine for long."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
