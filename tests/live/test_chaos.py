"""Ten random faults against a live cluster: no token wrong, missing or twice, no page lost."""

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
def test_random_faults_cost_no_token_and_no_page(tmp_path: Path) -> None:
    result = tmp_path / "chaos.json"
    flags = ("--minutes", "3", "--faults", "10", "--calm-s", "1.5", "--seed", "7", "--json", str(result))
    command = [sys.executable, "-m", "tests.reliability.chaos", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=420)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    measured = json.loads(result.read_text())
    figures = measured["figures"]
    assert figures.keys() >= published("chaos").figures.keys()
    assert figures["faults"] >= 10
    assert figures["requests_done"] > 50
    for name in ("tokens_wrong", "tokens_missing", "tokens_repeated", "pages_leaked", "requests_failed_unexplained"):
        assert figures[name] == 0, measured
