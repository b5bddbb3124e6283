"""Five times the saturating load for a few seconds: refusals with a retry hint, no failure, no page lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from baton.harness.results import published

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_an_overload_is_refused_in_time_and_costs_no_admitted_answer(tmp_path: Path) -> None:
    result = tmp_path / "overload.json"
    command = [sys.executable, "-m", "tests.reliability.overload", "--quick", "--seed", "3", "--json", str(result)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    measured = json.loads(result.read_text())
    figures = measured["figures"]
    assert figures.keys() >= published("overload").figures.keys()
    assert figures["requests_sent"] == figures["requests_done"] + figures["requests_refused"]
    assert figures["requests_done"] > 0
    assert figures["live_max"] <= figures["requests_sent"]
    for name in ("requests_failed", "refused_without_hint", "pages_leaked"):
        assert figures[name] == 0, measured
