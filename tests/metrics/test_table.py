"""The table of metrics: each declared once, by Prometheus' rules, and documented."""

from __future__ import annotations

import re

from baton.metrics import document
from baton.metrics.metric import Kind, Process, one_two_five
from baton.metrics.table import METRICS


def test_every_name_is_declared_once_and_says_its_type_and_unit() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names)) > 80
    for metric in METRICS:
        assert re.fullmatch(r"(vllm:|smg_|baton_)[a-z0-9_]+", metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM), metric.name
        assert list(metric.buckets) == sorted(set(metric.buckets)), metric.name
        assert metric.help.endswith(".") and "|" not in metric.help, metric.name
        assert not {"le", "job", "instance"} & set(metric.labels), metric.name


def test_a_sum_over_processes_counts_nothing_twice() -> None:
    both = {metric.name for metric in METRICS if metric.served is Process.BOTH}
    assert both == {"baton_loop_lag_seconds", "baton_build_info"}  # Which describe the process itself


def test_vllms_names_have_the_model_and_no_unbounded_label() -> None:
    bounded = {"worker", "role", "finished_reason", "block_size", "num_gpu_blocks"}
    for metric in METRICS:
        if metric.name.startswith("vllm:"):
            assert metric.labels[0] == "model_name" and set(metric.labels[1:]) <= bounded, metric.name


def test_the_units_of_names() -> None:
    units = {metric.name: metric.unit for metric in METRICS}
    assert units["vllm:time_to_first_token_seconds"] == "seconds"
    assert units["vllm:prompt_tokens_total"] == "tokens"
    assert units["baton_handoff_bytes"] == "bytes"
    assert units["vllm:kv_cache_usage_perc"] == units["baton_requests_total"] == ""


def test_bounds_by_one_two_five() -> None:
    assert one_two_five(1, 100) == (1, 2, 5, 10, 20, 50, 100)


def test_the_page_has_every_metric() -> None:
    assert document.main(["--check"]) == 0, "run python -m baton.metrics.document"
    text = document.PAGE.read_text()
    assert all(f"| `{metric.name}` | {metric.kind.value} |" in text for metric in METRICS)
    assert document.page("intro\n" + document.BEGIN + document.END + "\nend\n").endswith("\nend\n")
