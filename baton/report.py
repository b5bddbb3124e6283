"""What a person reads in the terminal: an answer's way through the cluster, and the cluster itself."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from baton.answer import Answer
from baton.v1 import admin_pb2


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


def size(num_bytes: int) -> str:
    """A number of bytes, readable."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def print_answer(console: Console, answer: Answer) -> None:
    """The way a request went."""
    table = Table.grid(padding=(0, 2))
    way = answer.prefill_worker
    if answer.decode_worker not in ("", answer.prefill_worker):
        way += f" → {answer.decode_worker}"
    table.add_row("[dim]way[/]", way)
    table.add_row(
        "[dim]tokens[/]",
        f"{answer.prompt_tokens} prompt ({answer.cached_tokens} from the prefix cache), {answer.output_tokens} output, "
        f"ended by {answer.finish_reason}",
    )
    table.add_row("[dim]latency[/]", f"TTFT {milliseconds(answer.ttft_s)}, TPOT {milliseconds(answer.tpot_s)}")
    handoff = answer.handoff
    if handoff is not None:
        table.add_row(
            "[dim]handoff[/]",
            f"{handoff.pages_sent} pages, {size(handoff.bytes_sent)} in {milliseconds(handoff.transfer_s)}; "
            f"{handoff.pages_cached} pages did not have to travel",
        )
    else:
        table.add_row("[dim]handoff[/]", "none: prompt and answer were computed by one worker")
    console.print(table)


def print_cluster(console: Console, cluster: admin_pb2.Cluster) -> None:
    """Pools, workers and their load."""
    console.print(
        f"[bold]{cluster.model}[/]  up {cluster.uptime_s:.0f} s; requests: {cluster.live_requests} live, "
        f"{cluster.queued_requests} queued, {cluster.finished_requests} finished, {cluster.failed_requests} failed"
    )
    table = Table("pool", "worker", "pid", "running", "waiting", "prompt tokens left", "pages held", "cached", "free")
    for pool in cluster.pools:
        for worker in pool.workers:
            counts = (
                worker.running,
                worker.waiting,
                worker.uncomputed_tokens,
                worker.pages_held,
                worker.pages_cached,
                worker.pages_free,
            )
            table.add_row(pool.role, worker.name, str(worker.pid), *map(str, counts))
    console.print(table)
    if not cluster.pools:
        console.print("No worker is registered.")
