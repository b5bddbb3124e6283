"""Settings of the whole suite."""

from __future__ import annotations

import os

from hypothesis import settings

# CI judges a change, so it tries the same examples each time; at a developer's desk each run looks at new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
