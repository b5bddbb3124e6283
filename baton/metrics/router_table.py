"""The metrics of the router, each declared once; those of workers are made of their load reports. Pure."""

from __future__ import annotations

from baton.metrics.metric import (
    FIRST_TOKEN_S,
    NUM_BYTES,
    NUM_TOKENS,
    SHORT_S,
    TOKEN_S,
    TRANSFER_S,
    Kind,
    Metric,
    Process,
    declared,
)

WORKER = ("worker", "role")
MODEL_WORKER = ("model_name", *WORKER)
SIDE = ("side",)  # "under": less than predicted was observed; "over": more
ROUTER = Process.ROUTER
COUNTER, GAUGE, HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

# Of each worker, by vLLM's and SMG's names

RUNNING = Metric(
    "vllm:num_requests_running", GAUGE, ROUTER, "Requests that a worker decodes, as of its load report.", MODEL_WORKER
)
WAITING = Metric(
    "vllm:num_requests_waiting",
    GAUGE,
    ROUTER,
    'Requests on a worker with prompt tokens left to compute; worker="router", role="queue": those in the router\'s '
    "queue.",
    MODEL_WORKER,
)
KV_USAGE = Metric(
    "vllm:kv_cache_usage_perc",
    GAUGE,
    ROUTER,
    "Share of a worker's KV pages that sequences and reservations hold, 0 to 1; prefix cache does not count.",
    MODEL_WORKER,
)
CACHE_CONFIG = Metric(
    "vllm:cache_config_info",
    GAUGE,
    ROUTER,
    "1, with the tokens per KV page and the number of pages of a worker.",
    (*MODEL_WORKER, "block_size", "num_gpu_blocks"),
)
PREEMPTIONS = Metric(
    "vllm:num_preemptions_total",
    COUNTER,
    ROUTER,
    "Preempted sequences of a worker since it took its role.",
    MODEL_WORKER,
)
PREFILL_QUEUE = Metric(
    "smg_engine_pd_prefill_queue_reqs", GAUGE, ROUTER, "Requests that wait for prefill on a worker.", WORKER
)
DECODE_QUEUE = Metric(
    "smg_engine_pd_decode_queue_reqs",
    GAUGE,
    ROUTER,
    "Reservations of a worker for sequences on their way to it.",
    WORKER,
)

# Of each worker, by names of our own

SERVING = Metric("baton_worker_serving", GAUGE, ROUTER, "1 if a worker gets new requests, 0 if it is drained.", WORKER)
PAGES_IN_USE = Metric("baton_worker_pages_in_use", GAUGE, ROUTER, "KV pages of sequences and reservations.", WORKER)
PAGES_CACHED = Metric("baton_worker_pages_cached", GAUGE, ROUTER, "KV pages that only the prefix cache has.", WORKER)
PAGES_FREE = Metric("baton_worker_pages_free", GAUGE, ROUTER, "KV pages that can be allocated at once.", WORKER)
PEAK_PAGES = Metric(
    "baton_worker_predicted_peak_pages",
    GAUGE,
    ROUTER,
    "Predicted maximum of the pages that its sequences will need.",
    WORKER,
)
PENDING_TOKENS = Metric(
    "baton_worker_pending_prefill_tokens", GAUGE, ROUTER, "Prompt tokens that a worker has yet to compute.", WORKER
)
BUSY = Metric(
    "baton_worker_predicted_busy_seconds", GAUGE, ROUTER, "Predicted time that its prompt work will take.", WORKER
)
STEP_TIME = Metric(
    "baton_worker_predicted_step_seconds", GAUGE, ROUTER, "Predicted duration of its next decode step.", WORKER
)
SWAPPED = Metric(
    "baton_worker_swapped_requests", GAUGE, ROUTER, "Preempted sequences whose pages are in host memory.", WORKER
)
SWAPS = Metric(
    "baton_worker_swaps_total", COUNTER, ROUTER, "Preemptions to host memory since a worker took its role.", WORKER
)
RECOMPUTES = Metric(
    "baton_worker_recomputes_total",
    COUNTER,
    ROUTER,
    "Preemptions whose pages had to be recomputed, since a worker took its role.",
    WORKER,
)
DECODE_STEPS = Metric(
    "baton_worker_decode_steps_total", COUNTER, ROUTER, "Decode steps since a worker took its role.", WORKER
)
REPORT_AGE = Metric(
    "baton_worker_report_age_seconds",
    GAUGE,
    ROUTER,
    "Time since a worker's last message: one that reports late is busy, stopped or cut off.",
    WORKER,
)
ROLE_SWITCHES = Metric(
    "baton_role_switches_total", COUNTER, ROUTER, "Role switches of a worker since it started.", ("worker",)
)

# Of the cluster

QUEUED = Metric("baton_queued_requests", GAUGE, ROUTER, "Requests that wait for a worker.")
QUEUE_AGE = Metric(
    "baton_queue_oldest_seconds", GAUGE, ROUTER, "Time since the arrival of the oldest request in the queue; 0: none."
)
LIVE = Metric(
    "baton_live_requests",
    GAUGE,
    ROUTER,
    "Requests that have not ended, by phase (docs/architecture.md).",
    ("phase",),
)
POOL = Metric("baton_pool_workers", GAUGE, ROUTER, "Registered workers by role.", ("role",))
GATEWAYS = Metric("baton_gateways", GAUGE, ROUTER, "Registered gateways.")
UNCLAIMED = Metric(
    "baton_unclaimed_sequences",
    GAUGE,
    ROUTER,
    "Sequences that wait to be claimed, by cause: the router restarted (kept by a worker), or a gateway was lost.",
    ("cause",),
)
CONTINUED = Metric(
    "baton_continued_requests_total", COUNTER, ROUTER, "Requests that went on after a restart of the router."
)
UNANSWERED = Metric("baton_unanswered_handoffs", GAUGE, ROUTER, "Orders to send pages whose source has yet to answer.")
FENCED = Metric(
    "baton_fenced_writers",
    GAUGE,
    ROUTER,
    "Reservations that are held because the write of a lost or stalled worker may still arrive.",
)
BROKEN_LINKS = Metric("baton_broken_links", GAUGE, ROUTER, "Pairs of workers that cannot exchange pages now.")
CUT_LINKS = Metric(
    "baton_cut_token_links", GAUGE, ROUTER, "Pairs of a gateway and a worker that cannot send tokens to it now."
)
BREAKER = Metric("baton_breaker_open", GAUGE, ROUTER, "Workers that get no requests because they were lost too often.")
LOST = Metric(
    "baton_recently_lost_workers", GAUGE, ROUTER, "Workers that were lost in the last ten minutes, back or not."
)
UNEXPECTED = Metric(
    "baton_unexpected_events_total", COUNTER, ROUTER, "Events that no request should have got; they were ignored."
)
OPERATIONS = Metric(
    "baton_operations_total",
    COUNTER,
    ROUTER,
    "Ended operations by kind (drain, undrain, rebalance, migrate) and state (done, failed, cancelled).",
    ("kind", "state"),
)
DECISION = Metric(
    "baton_router_decision_seconds",
    HISTOGRAM,
    ROUTER,
    "Time in which the router handled one frame of a worker or gateway, with the placements that followed.",
    (),
    SHORT_S,
)

# Of each ended request

COMPLETED = Metric(
    "baton_completed_requests_total",
    COUNTER,
    ROUTER,
    "Requests that the router took and that have ended, by outcome: stop, length, or the error's name.",
    ("outcome",),
)
REFUSED = Metric(
    "baton_refused_requests_total",
    COUNTER,
    ROUTER,
    "Requests that the router refused, by cause: queue_full, ttft_objective, tpot_objective, tenant_streams, or the "
    "error's name.",
    ("cause",),
)
ATTEMPTS = Metric(
    "baton_retries_total", COUNTER, ROUTER, "Attempts beyond the first of ended requests: workers lost, pages lost."
)
MIGRATIONS = Metric("baton_migrations_total", COUNTER, ROUTER, "Migrations of ended requests between decode workers.")
LOCAL = Metric(
    "baton_local_requests_total", COUNTER, ROUTER, "Ended requests that one worker served whole, without a handoff."
)
TRANSFER_TIME = Metric(
    "smg_pd_kv_transfer_duration_seconds",
    HISTOGRAM,
    ROUTER,
    "Time that the writes of a handoff took, summed; most of it is hidden behind prefill.",
    ("model",),
    TRANSFER_S,
)
TRANSFER_FAILURES = Metric(
    "smg_pd_kv_transfer_failures_total",
    COUNTER,
    ROUTER,
    "Handoffs that failed or arrived corrupt, of ended requests; each was tried again, at most three times.",
    ("model",),
)
HANDOFF_BYTES = Metric(
    "baton_handoff_bytes", HISTOGRAM, ROUTER, "Bytes of KV pages that a handoff wrote.", (), NUM_BYTES
)
EXPOSED_TIME = Metric(
    "baton_handoff_exposed_seconds",
    HISTOGRAM,
    ROUTER,
    "From the end of a prompt's computation to the end of its last write: what computing did not hide.",
    (),
    TRANSFER_S,
)
DESCRIPTORS = Metric(
    "baton_handoff_descriptors_total", COUNTER, ROUTER, "KV pages written by handoffs, each in one descriptor."
)
CACHED_PAGES = Metric(
    "baton_handoff_cached_pages_total", COUNTER, ROUTER, "KV pages that handoffs left out: the target had them."
)
TTFT_ERROR = Metric(
    "baton_ttft_prediction_error_seconds",
    HISTOGRAM,
    ROUTER,
    "Difference of a request's time from placement to first token and its prediction, by side: over (later than "
    "predicted) or under.",
    SIDE,
    FIRST_TOKEN_S,
)
TPOT_ERROR = Metric(
    "baton_tpot_prediction_error_seconds",
    HISTOGRAM,
    ROUTER,
    "Difference of a request's mean time per output token and its prediction, by side.",
    SIDE,
    (0.0001, 0.0003, *TOKEN_S),
)
LENGTH_ERROR = Metric(
    "baton_output_length_error_tokens",
    HISTOGRAM,
    ROUTER,
    "Difference of a request's output length and the predicted median, by side, of answers that reached no limit.",
    SIDE,
    NUM_TOKENS,
)

ROUTER_METRICS = declared(globals())
