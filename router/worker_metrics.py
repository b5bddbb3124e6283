"""The metrics of every worker, made of the router's view of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from baton.metrics import router_table as table
from baton.metrics.values import Family, Labels
from baton.router.policy.cluster_state import WorkerView

ROUTER_QUEUE = ("router", "queue")  # In place of a worker and its role


def worker_families(views: Iterable[WorkerView], queued: int, model_name: str, now: float) -> list[Family]:
    """One series of each metric for every worker; `queued` requests are in the router's queue."""
    workers = [((view.name, view.role.value), view) for view in views]
    models = [((model_name, *labels), view) for labels, view in workers]
    config = [((*labels, str(view.info.page_size), str(view.info.num_pages)), 1) for labels, view in models]
    waiting: list[tuple[Labels, float]] = [(labels, view.load.waiting) for labels, view in models]
    return [
        Family(table.RUNNING, [(labels, view.load.running) for labels, view in models]),
        Family(table.WAITING, [*waiting, ((model_name, *ROUTER_QUEUE), queued)]),
        Family(table.KV_USAGE, [(labels, view.load.pages_in_use / view.load.pages_total) for labels, view in models]),
        Family(table.CACHE_CONFIG, config),
        Family(table.PREEMPTIONS, [(labels, view.load.swap_outs + view.load.recomputes) for labels, view in models]),
        Family(table.PREFILL_QUEUE, [(labels, view.load.waiting) for labels, view in workers]),
        Family(table.DECODE_QUEUE, [(labels, len(view.load.reservation_ids)) for labels, view in workers]),
        Family(table.SERVING, [(labels, int(view.serving)) for labels, view in workers]),
        Family(table.PAGES_IN_USE, [(labels, view.load.pages_in_use) for labels, view in workers]),
        Family(table.PAGES_CACHED, [(labels, view.load.pages_cached) for labels, view in workers]),
        Family(table.PAGES_FREE, [(labels, view.load.pages_free) for labels, view in workers]),
        Family(table.PEAK_PAGES, [(labels, view.peak_pages()) for labels, view in workers]),
        Family(table.PENDING_TOKENS, [(labels, view.load.pending_prefill_tokens) for labels, view in workers]),
        Family(table.BUSY, [(labels, max(0.0, view.backlog_ends_s - now)) for labels, view in workers]),
        Family(table.STEP_TIME, [(labels, view.decode_step_s() if view.running else 0) for labels, view in workers]),
        Family(table.SWAPPED, [(labels, view.load.swapped) for labels, view in workers]),
        Family(table.SWAPS, [(labels, view.load.swap_outs) for labels, view in workers]),
        Family(table.RECOMPUTES, [(labels, view.load.recomputes) for labels, view in workers]),
        Family(table.DECODE_STEPS, [(labels, view.load.decode_steps) for labels, view in workers]),
        Family(table.REPORT_AGE, [(labels, max(0.0, now - view.last_message_s)) for labels, view in workers]),
        Family(table.ROLE_SWITCHES, [((view.name,), view.load.role_epoch) for _, view in workers]),
    ]
