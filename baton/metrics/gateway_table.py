"""The metrics of a gateway, each declared once. Pure."""

from __future__ import annotations

from baton.metrics.metric import (
    FIRST_TOKEN_S,
    NUM_TOKENS,
    REQUEST_S,
    SHORT_S,
    TOKEN_S,
    Kind,
    Metric,
    Process,
    declared,
)

MODEL = ("model_name",)
GATEWAY = Process.GATEWAY
COUNTER, GAUGE, HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

# Requests and tokens, by vLLM's names

FIRST_TOKEN = Metric(
    "vllm:time_to_first_token_seconds",
    HISTOGRAM,
    GATEWAY,
    "From a request's arrival at the gateway to its first token.",
    MODEL,
    FIRST_TOKEN_S,
)
INTER_TOKEN = Metric(
    "vllm:inter_token_latency_seconds",
    HISTOGRAM,
    GATEWAY,
    "From one step's output of a request to the next, at the gateway; tokens that arrive together are one output.",
    MODEL,
    TOKEN_S,
)
TIME_PER_TOKEN = Metric(
    "vllm:request_time_per_output_token_seconds",
    HISTOGRAM,
    GATEWAY,
    "Mean time per output token after the first, of each ended request with two tokens or more.",
    MODEL,
    TOKEN_S,
)
END_TO_END = Metric(
    "vllm:e2e_request_latency_seconds",
    HISTOGRAM,
    GATEWAY,
    "From a request's arrival at the gateway to its last token, of each request that ended with an answer.",
    MODEL,
    REQUEST_S,
)
QUEUE_TIME = Metric(
    "vllm:request_queue_time_seconds",
    HISTOGRAM,
    GATEWAY,
    "From a request's arrival at the gateway until the router has placed it.",
    MODEL,
    REQUEST_S,
)
PREFILL_TIME = Metric(
    "vllm:request_prefill_time_seconds",
    HISTOGRAM,
    GATEWAY,
    "From a request's placement to its first token.",
    MODEL,
    REQUEST_S,
)
DECODE_TIME = Metric(
    "vllm:request_decode_time_seconds",
    HISTOGRAM,
    GATEWAY,
    "From a request's first token to its last one; the handoff to the decode worker is part of it.",
    MODEL,
    REQUEST_S,
)
INFERENCE_TIME = Metric(
    "vllm:request_inference_time_seconds",
    HISTOGRAM,
    GATEWAY,
    "From a request's placement to its last token.",
    MODEL,
    REQUEST_S,
)
PROMPT_TOKENS = Metric(
    "vllm:prompt_tokens_total", COUNTER, GATEWAY, "Prompt tokens of requests that had their first token.", MODEL
)
CACHED_TOKENS = Metric(
    "vllm:prompt_tokens_cached_total",
    COUNTER,
    GATEWAY,
    "Prompt tokens of ended requests that were in a prefix cache.",
    MODEL,
)
GENERATION_TOKENS = Metric("vllm:generation_tokens_total", COUNTER, GATEWAY, "Output tokens sent to clients.", MODEL)
CACHE_QUERIES = Metric(
    "vllm:prefix_cache_queries_total",
    COUNTER,
    GATEWAY,
    "Prompt tokens of ended requests, which were looked up in a prefix cache.",
    MODEL,
)
CACHE_HITS = Metric(
    "vllm:prefix_cache_hits_total", COUNTER, GATEWAY, "Those of them that were in the prefix cache.", MODEL
)
REQUEST_PROMPT = Metric(
    "vllm:request_prompt_tokens", HISTOGRAM, GATEWAY, "Prompt tokens of each ended request.", MODEL, NUM_TOKENS
)
REQUEST_GENERATION = Metric(
    "vllm:request_generation_tokens", HISTOGRAM, GATEWAY, "Output tokens of each ended request.", MODEL, NUM_TOKENS
)
REQUEST_MAX_GENERATION = Metric(
    "vllm:request_max_num_generation_tokens",
    HISTOGRAM,
    GATEWAY,
    "The same: each sequence of an answer is a request of its own.",
    MODEL,
    NUM_TOKENS,
)
REQUEST_PREFILL = Metric(
    "vllm:request_prefill_kv_computed_tokens",
    HISTOGRAM,
    GATEWAY,
    "Prompt tokens of each ended request that no prefix cache had.",
    MODEL,
    NUM_TOKENS,
)
REQUEST_MAX_TOKENS = Metric(
    "vllm:request_params_max_tokens",
    HISTOGRAM,
    GATEWAY,
    "The parameter max_tokens of each ended request, at most what the context has room for.",
    MODEL,
    NUM_TOKENS,
)
SUCCESS = Metric(
    "vllm:request_success_total",
    COUNTER,
    GATEWAY,
    "Ended requests by finished_reason: stop, length, abort (its client left) or error.",
    (*MODEL, "finished_reason"),
)

# What others have no name for

REQUESTS = Metric(
    "baton_requests_total",
    COUNTER,
    GATEWAY,
    "Ended requests by api (grpc, http) and outcome: stop, length, or the error's name (docs/clients.md).",
    ("api", "outcome"),
)
REJECTED = Metric(
    "baton_rejected_requests_total",
    COUNTER,
    GATEWAY,
    "Requests for which the gateway opened no stream, by api and error: invalid, too long, without a valid token.",
    ("api", "error"),
)
TENANT_REQUESTS = Metric(
    "baton_tenant_requests_total",
    COUNTER,
    GATEWAY,
    "Ended requests by tenant, for tenants of the token file.",
    ("tenant",),
)
TENANT_PROMPT_TOKENS = Metric(
    "baton_tenant_prompt_tokens_total",
    COUNTER,
    GATEWAY,
    "Prompt tokens of ended requests by tenant, for tenants of the token file.",
    ("tenant",),
)
TENANT_OUTPUT_TOKENS = Metric(
    "baton_tenant_output_tokens_total",
    COUNTER,
    GATEWAY,
    "Output tokens of ended requests by tenant, for tenants of the token file.",
    ("tenant",),
)
RESUMED = Metric(
    "baton_resumed_streams_total", COUNTER, GATEWAY, "Streams opened by clients that had tokens of them already."
)
OPENED = Metric("baton_opened_streams_total", COUNTER, GATEWAY, "Streams opened, of answers and of failures.")
STREAMS = Metric("baton_streams", GAUGE, GATEWAY, "Streams that are open.")
STREAM_GAPS = Metric("baton_stream_gaps", GAUGE, GATEWAY, "Open streams with later tokens but without the next one.")
WAITING_BYTES = Metric("baton_waiting_text_bytes", GAUGE, GATEWAY, "Text that waits for tokenisation.")
DROPPED_TOKENS = Metric(
    "baton_dropped_tokens_total",
    COUNTER,
    GATEWAY,
    "Tokens that were not shown, by cause: invalid (outside the vocabulary) or refused (of unknown workers).",
    ("cause",),
)
ROUTER_CONNECTED = Metric(
    "baton_router_connected", GAUGE, GATEWAY, "1 if the router has registered this gateway, else 0."
)
READY = Metric(
    "baton_gateway_ready", GAUGE, GATEWAY, "1 if the router is there and workers of every needed role serve, else 0."
)
KNOWN_WORKERS = Metric("baton_known_workers", GAUGE, GATEWAY, "Workers that may send tokens to this gateway.")

# Of every process

LOOP_LAG = Metric(
    "baton_loop_lag_seconds",
    HISTOGRAM,
    Process.BOTH,
    "How late the event loop wakes a task that sleeps, looked at ten times a second.",
    (),
    SHORT_S,
)
BUILD = Metric(
    "baton_build_info", GAUGE, Process.BOTH, "1, with Baton's version and the process.", ("version", "process")
)

GATEWAY_METRICS = declared(globals())
