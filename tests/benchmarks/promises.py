"""What every benchmark run must report."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.catalog import BY_NAME


def check_promised(name: str, measured: dict[str, Any]) -> None:
    """Every figure that the catalogue promises is a finite number."""
    figures = measured["figures"]
    assert [figure for figure in BY_NAME[name].promised if figure not in figures] == []
    assert [figure for figure, value in figures.items() if not math.isfinite(value)] == []
