"""Settings of the whole suite."""

from __future__ import annotations

import os

from hypothesis import settings

# CI tries the same examples each time, so that a failure belongs to the change; a developer's run tries new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
