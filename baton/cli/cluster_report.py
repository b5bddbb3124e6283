"""Text of `baton status` and `baton pools`: gateways, workers, pools, planner."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from baton.cli.report import milliseconds, size
from baton.cli.table import Column, FittingTable, fitting
from baton.protocol.v1 import admin_pb2

BAR_CELLS = 12
COLUMNS = (
    Column("worker"),
    Column("pool", 2),
    Column("state", 1),
    Column("running", 4, right=True),
    Column("waiting", 5, right=True),
    Column("prompt left", 7, right=True),
    Column("busy", 8, right=True, note="busy: predicted time until all prompts are computed"),
    Column("TPOT", 6, right=True, note="TPOT: predicted"),
    Column("KV pages", 10, drawing=True, note="KV pages: █ in use, ▒ prefix cache, ░ free"),
    Column("in use", 3, right=True, note="in use: share of KV pages"),
    Column("peak", 9, right=True, note="peak: predicted maximum of that share"),
)
RANKS = Column("ranks", 3, note="ranks: processes that compute every step together, and their pids")
GATEWAY_COLUMNS = (
    Column("gateway"),
    Column("clients connect to", 6),
    Column("streams", 1, right=True),
    Column("tokens/s", 2, right=True),
    Column("requests/s", 3, right=True),
    Column("CPU", 4, right=True, note="CPU: share of a core"),
    Column("waiting text", 5, right=True, note="waiting text: not tokenised yet"),
)
POOL_COLUMNS = (
    Column("pool"),
    Column("workers", 1, right=True),
    Column("serving", 2, right=True),
    Column("running", 4, right=True),
    Column("waiting", 5, right=True),
    Column("KV in use", 3, right=True),
)
STATE_STYLES = {"serving": "green", "draining": "yellow", "drained": "dim"}


def cluster_screen(cluster: admin_pb2.Cluster) -> RenderableType:
    """`baton status`: a line for the cluster, a row per gateway and a row per worker."""
    head = Text.assemble(
        (cluster.model, "bold"),
        f"  up {cluster.uptime_s:.0f} s, policy {cluster.settings['policy']}; requests: {cluster.live_requests} live, "
        f"{cluster.queued_requests} queued, {cluster.finished_requests} finished, {cluster.cancelled_requests} "
        f"cancelled by their clients, {cluster.failed_requests} failed ({cluster.refused_requests} of them refused)",
    )
    gateways = fitting(GATEWAY_COLUMNS, map(_gateway_cells, cluster.gateways))
    front = gateways if cluster.gateways else "No gateway is registered."
    if not cluster.pools:
        return Group(head, front, "No worker is registered.")
    ranks = any(len(worker.rank_pids) > 1 for pool in cluster.pools for worker in pool.workers)
    table = FittingTable((*COLUMNS, RANKS) if ranks else COLUMNS)
    for pool in cluster.pools:
        for worker in pool.workers:
            table.add_row(worker.name, pool.role, *_cells(worker), *([_ranks_cell(worker)] if ranks else []))
        table.end_section()
    return Group(head, front, table)


def _gateway_cells(gateway: admin_pb2.GatewayStatus) -> list[str]:
    return [
        gateway.name,
        gateway.public_address,
        str(gateway.streams),
        f"{gateway.tokens_per_s:,.0f}",
        f"{gateway.requests_per_s:,.1f}",
        f"{100 * gateway.cpu_share:.0f} %",
        size(gateway.waiting_bytes),
    ]


def _cells(worker: admin_pb2.WorkerStatus) -> list[str | Text]:
    return [
        Text(worker.state, STATE_STYLES.get(worker.state, "")),
        str(worker.running),
        f"{worker.waiting} ({worker.swapped} swapped)" if worker.swapped else str(worker.waiting),
        str(worker.pending_prefill_tokens),
        milliseconds(worker.predicted_busy_s) if worker.predicted_busy_s else "-",
        milliseconds(worker.predicted_tpot_s) if worker.predicted_tpot_s else "-",
        kv_bar(worker),
        percent(worker.pages_in_use, worker.pages_total),
        percent(worker.predicted_peak_pages, worker.pages_total),
    ]


def _ranks_cell(worker: admin_pb2.WorkerStatus) -> str:
    return f"{len(worker.rank_pids)} ({', '.join(map(str, worker.rank_pids))})"


def kv_bar(worker: admin_pb2.WorkerStatus) -> str:
    """Pages in use, cached and free, as a bar. Every share above 0 has at least one cell."""
    total = max(worker.pages_total, 1)
    held = min(BAR_CELLS, -(-worker.pages_in_use * BAR_CELLS // total))
    cached = min(BAR_CELLS - held, -(-worker.pages_cached * BAR_CELLS // total))
    return "█" * held + "▒" * cached + "░" * (BAR_CELLS - held - cached)


def percent(part: int, whole: int) -> str:
    """A share as text; "-" of nothing."""
    return f"{100 * part / whole:.0f} %" if whole else "-"


def status_lines(cluster: admin_pb2.Cluster) -> list[str]:
    """One plain line per gateway and per worker, for `--watch` without a terminal."""
    gateways = [
        f"{cluster.uptime_s:.0f} s  {gateway.name}  streams {gateway.streams}  {gateway.tokens_per_s:.0f} tokens/s  "
        f"{gateway.requests_per_s:.1f} requests/s  CPU {100 * gateway.cpu_share:.0f} %  "
        f"waiting text {size(gateway.waiting_bytes)}"
        for gateway in cluster.gateways
    ]
    return gateways + [
        f"{cluster.uptime_s:.0f} s  {worker.name}  {pool.role}  {worker.state}  running {worker.running}  "
        f"waiting {worker.waiting}  prompt left {worker.pending_prefill_tokens}  "
        f"KV {percent(worker.pages_in_use, worker.pages_total)}  "
        f"peak {percent(worker.predicted_peak_pages, worker.pages_total)}"
        + (f"  ranks {_ranks_cell(worker)}" if len(worker.rank_pids) > 1 else "")
        for pool in cluster.pools
        for worker in pool.workers
    ]


def pool_summaries(cluster: admin_pb2.Cluster) -> list[dict[str, Any]]:
    """Totals of each pool."""
    return [
        {
            "role": pool.role,
            "workers": len(pool.workers),
            "serving": sum(worker.state == "serving" for worker in pool.workers),
            "running": sum(worker.running for worker in pool.workers),
            "waiting": sum(worker.waiting for worker in pool.workers),
            "pages_in_use": sum(worker.pages_in_use for worker in pool.workers),
            "pages_total": sum(worker.pages_total for worker in pool.workers),
        }
        for pool in cluster.pools
    ]


def pools_screen(cluster: admin_pb2.Cluster) -> RenderableType:
    """`baton pools`: a row per pool and the planner's line."""
    rows = [
        [
            pool["role"],
            *(str(pool[name]) for name in ("workers", "serving", "running", "waiting")),
            percent(pool["pages_in_use"], pool["pages_total"]),
        ]
        for pool in pool_summaries(cluster)
    ]
    table = fitting(POOL_COLUMNS, rows)
    return Group(table if cluster.pools else "No worker is registered.", planner_line(cluster.planner))


def planner_line(planner: admin_pb2.Planner) -> str:
    """The planner's mode, forecast and advice, in a line."""
    line = f"planner: auto {'on' if planner.auto else 'off'}"
    if planner.prompt_tokens_per_s or planner.output_tokens_per_s:
        line += (
            f"; forecast: {planner.prompt_tokens_per_s:,.0f} prompt and {planner.output_tokens_per_s:,.0f} "
            "output tokens/s"
        )
    if planner.prefill or planner.decode:
        line += f"; advice: {planner.prefill} prefill + {planner.decode} decode"
    else:
        line += "; no advice yet"
    return f"{line}: {planner.why}" if planner.why else line
