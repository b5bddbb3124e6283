"""The figures of `baton bench`: read from guidellm's report and the router's counts, as a table or a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baton.client.errors import BatonError, InvalidRequest

if TYPE_CHECKING:
    from baton.protocol.v1 import admin_pb2

TOTALS = ("prompt_tokens", "cached_tokens", "handoffs", "handoff_bytes", "served_locally", "predicted")
MIB = 1 << 20


def guidellm_figures(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of the one run in guidellm's report."""
    (run,) = report["benchmarks"]
    metrics, totals = run["metrics"], run["metrics"]["request_totals"]
    ttft = metrics["time_to_first_token_ms"]["successful"]["percentiles"]
    gap = metrics["inter_token_latency_ms"]["successful"]["percentiles"]
    return {
        "streams": run["config"]["strategy"]["streams"],
        "requests": totals["successful"],
        "errors": totals["errored"],
        "output_tokens_per_s": metrics["output_tokens_per_second"]["successful"]["mean"],
        "ttft_p50_ms": ttft["p50"],
        "ttft_p99_ms": ttft["p99"],
        "gap_p50_ms": gap["p50"],
        "gap_p99_ms": gap["p99"],
    }


def counts(cluster: admin_pb2.Cluster) -> dict[str, float]:
    """What the router has counted since it started."""
    totals = {name: float(getattr(cluster.totals, name)) for name in (*TOTALS, "prediction_error_s")}
    return {"failed": float(cluster.failed_requests), **totals}


def router_figures(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """The figures between two counts; a share or a mean of nothing is None."""
    change = {name: after[name] - before[name] for name in after}
    tokens, predicted = change["prompt_tokens"], change["predicted"]
    return {
        "failed": int(change["failed"]),
        "handoffs": int(change["handoffs"]),
        "handoff_mib": change["handoff_bytes"] / MIB,
        "served_locally": int(change["served_locally"]),
        "prefix_hit_percent": 100 * change["cached_tokens"] / tokens if tokens else None,
        "prediction_error_ms": 1000 * change["prediction_error_s"] / predicted if predicted else None,
    }


def markdown(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The runs as lines of a table."""
    titles = list(runs[0]) if runs else []
    cells = [[_cell(value) for value in run.values()] for run in runs]
    return ["| " + " | ".join(line) + " |" for line in (titles, ["---"] * len(titles), *cells)]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def prepare_plot() -> None:
    """Raise `InvalidRequest` without matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise InvalidRequest("--plot needs matplotlib: run pip install matplotlib.") from None


def plot(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw throughput and latencies over the number of streams; raises `BatonError` if the file cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    streams = [run["streams"] for run in runs]
    drawn = (("output_tokens_per_s",), ("ttft_p50_ms", "ttft_p99_ms"), ("gap_p50_ms", "gap_p99_ms"))
    for axes, names in zip(panels, drawn, strict=True):
        for name in names:
            axes.plot(streams, [run[name] for run in runs], marker="o", label=name)
        axes.set(xlabel="concurrent streams", ylim=(0, None))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise BatonError(f"The plot {path} cannot be written: {error}.") from None
