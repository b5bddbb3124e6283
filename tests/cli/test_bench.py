"""`baton bench` without guidellm, and what it reads in guidellm's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from baton.cli.bench import bench, markdown, rows
from baton.client.errors import InvalidRequest


def _run(streams: int, requests: int) -> dict[str, Any]:
    times = {"successful": {"percentiles": {"p50": 12.34, "p99": 56.0}, "mean": 200.0}}
    names = ("time_to_first_token_ms", "inter_token_latency_ms", "output_tokens_per_second")
    metrics = {"request_totals": {"successful": requests, "errored": 1}, **dict.fromkeys(names, times)}
    return {"config": {"strategy": {"streams": streams}}, "metrics": metrics}


def test_without_guidellm_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidRequest, match="pip install guidellm"):
        bench()


def test_a_report_becomes_a_table_with_a_line_per_run() -> None:
    runs = rows({"benchmarks": [_run(1, 20), _run(4, 70)]})
    assert [(run["streams"], run["requests"], run["errors"]) for run in runs] == [(1, 20, 1), (4, 70, 1)]
    head, _, first, second = markdown(runs)
    assert head.startswith("| streams | requests | errors | output_tokens_per_s | ttft_p50_ms |")
    assert first == "| 1 | 20 | 1 | 200.0 | 12.3 | 56.0 | 12.3 | 56.0 |"
    assert second.startswith("| 4 | 70 |")
