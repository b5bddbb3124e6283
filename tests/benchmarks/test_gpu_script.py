"""benchmarks.gpu from its flags to its table, on the CPU with a tiny model: the same code, two processes included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.figures import EXPECTED
from benchmarks.gpu.sizes import SIZES

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {  # on purpose: too large for the tiny shape, and what a CPU does not have
    "decode_ratio_to_floor_b4096_128",
    "decode_step_ms_b4096_128",
    "prefill_layer_ms_fa2",
    "prefill_layer_ms_fa3",
    "decode_layer_ms_pages_per_layer",
    "decode_layer_ms_layers_in_page",
    "decode_layer_ms_heads_outermost",
}


@pytest.mark.slow
def test_every_part_runs_and_reports_every_figure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--shape", "tiny", "--budget-s", "380"]
    environment = {**os.environ, "OUT": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    failures = {name: part["failures"] for name, part in found["parts"].items() if part["failures"]}
    assert not failures, done.stdout
    assert done.returncode == 0, done.stderr
    names = {name for figures in EXPECTED.values() for name in figures(SIZES["tiny"])}
    assert set(found["figures"]) == names - SKIPPED
    assert {name for part in found["parts"].values() for name in part["skipped"]} == SKIPPED
    figures = found["figures"]
    assert figures["handoff_tokens_equal"] == figures["built_in_look_ups_right"] == 1.0
    assert figures["handoff_tokens_equal_random_weights"] == 1.0
    assert figures["attention_error"] < 1e-5
    assert figures["logits_error_to_transformers"] < 1e-5
    assert all(name in done.stdout for name in names)
    assert "not a GPU's" in done.stdout
    assert "not a GPU's" in found["warning"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.log"]
