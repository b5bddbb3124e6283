"""`baton bench` without guidellm, and what it reads in guidellm's report and the router's counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from baton.cli.bench import bench
from baton.cli.bench_report import counts, guidellm_figures, markdown, plot, router_figures
from baton.client.errors import BatonError, InvalidRequest
from baton.protocol.v1 import admin_pb2


def _report(streams: int, requests: int) -> dict[str, Any]:
    times = {"successful": {"percentiles": {"p50": 12.34, "p99": 56.0}, "mean": 200.0}}
    names = ("time_to_first_token_ms", "inter_token_latency_ms", "output_tokens_per_second")
    metrics = {"request_totals": {"successful": requests, "errored": 1}, **dict.fromkeys(names, times)}
    return {"benchmarks": [{"config": {"strategy": {"streams": streams}}, "metrics": metrics}]}


def _cluster(scale: int) -> admin_pb2.Cluster:
    totals = admin_pb2.RequestTotals(
        prompt_tokens=200 * scale,
        cached_tokens=50 * scale,
        handoffs=3 * scale,
        handoff_bytes=scale << 20,
        served_locally=scale,
        predicted=4 * scale,
        prediction_error_s=0.1 * scale,
    )
    return admin_pb2.Cluster(failed_requests=scale, totals=totals)


def _runs() -> list[dict[str, Any]]:
    figures = router_figures(counts(_cluster(1)), counts(_cluster(3)))
    return [{**guidellm_figures(_report(streams, requests)), **figures} for streams, requests in ((1, 20), (4, 70))]


def test_without_guidellm_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidRequest, match="pip install guidellm"):
        bench()


def test_a_run_has_guidellms_figures_and_those_of_the_router_in_its_time() -> None:
    head, _, first, second = markdown(_runs())
    assert head.startswith("| streams | requests | errors | output_tokens_per_s | ttft_p50_ms |")
    assert head.endswith(
        "| failed | handoffs | handoff_mib | served_locally | prefix_hit_percent | prediction_error_ms |"
    )
    assert first == "| 1 | 20 | 1 | 200.0 | 12.3 | 56.0 | 12.3 | 56.0 | 2 | 6 | 2.0 | 2 | 25.0 | 25.0 |"
    assert second.startswith("| 4 | 70 |")


def test_without_requests_there_is_no_share() -> None:
    figures = router_figures(counts(_cluster(1)), counts(_cluster(1)))
    assert (figures["prefix_hit_percent"], figures["prediction_error_ms"]) == (None, None)
    assert markdown([figures])[-1] == "| 0 | 0 | 0.0 | 0 | – | – |"


def test_runs_are_drawn_into_a_file_or_an_error_says_why_not(tmp_path: Path) -> None:
    plot(_runs(), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BatonError, match="cannot be written"):
        plot(_runs(), tmp_path / "missing" / "bench.png")
