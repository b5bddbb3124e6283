"""Settings of the whole suite."""

from __future__ import annotations

import os
import sys

from hypothesis import settings

# CI judges a change, so it tries the same examples each time; at a developer's desk each run looks at new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_collection_finish() -> None:
    """One thread computes, as in a worker: several wait for one another in a loop, and on a busy machine for long."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
