"""The panels of Grafana's board: each a title, a unit and queries.

The names of metrics come from their table, so a panel of a metric that does not exist fails here.
"""

from __future__ import annotations

from dataclasses import dataclass

from baton.metrics import gateway_table as gateway
from baton.metrics import router_table as router
from baton.metrics.metric import Metric

MODEL, GATEWAY, WORKER = 'model_name=~"$model"', 'process=~"$gateway"', 'role=~"$role"'
QUANTILES = (0.5, 0.9, 0.99)
Query = tuple[str, str]  # A PromQL expression and the legend of its series


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot over time, or (`stat`) the last value as a number."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    about: str = ""
    stat: bool = False
    maximum: float | None = None


def rate(metric: Metric, by: str, chosen: str = "") -> str:
    """A counter's rate per second, summed over all labels except `by`."""
    return f"sum by ({by}) (rate({metric.name}{{{chosen}}}[$__rate_interval]))"


def quantiles(metric: Metric, chosen: str = "", by: str = "") -> tuple[Query, ...]:
    """Percentiles of a histogram."""
    labels, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    summed = f"sum by ({labels}) (rate({metric.name}_bucket{{{chosen}}}[$__rate_interval]))"
    return tuple((f"histogram_quantile({share:g}, {summed})", f"p{share * 100:g}{legend}") for share in QUANTILES)


def gauge(metric: Metric, legend: str, chosen: str = "") -> Query:
    """A gauge as it is."""
    return (f"{metric.name}{{{chosen}}}" if chosen else metric.name), legend


def total(metric: Metric, legend: str = "", chosen: str = "") -> Query:
    """The sum of a gauge over all its series."""
    return f"sum({gauge(metric, '', chosen)[0]})", legend


OUTPUT_TOKENS: Query = (f"sum(rate({gateway.GENERATION_TOKENS.name}{{{MODEL}}}[$__rate_interval]))", "")
CACHE_HITS: Query = (
    f"sum(rate({gateway.CACHE_HITS.name}{{{MODEL}}}[$__rate_interval]))"
    f" / sum(rate({gateway.CACHE_QUERIES.name}{{{MODEL}}}[$__rate_interval]))",
    "hits",
)
ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        Panel("Requests", "reqps", ((f"sum(rate({gateway.REQUESTS.name}[$__rate_interval]))", ""),), stat=True),
        Panel("Output tokens per second", "short", (OUTPUT_TOKENS,), stat=True),
        Panel("Time to first token, p90", "s", (quantiles(gateway.FIRST_TOKEN, MODEL)[1],), stat=True),
        Panel("Time per output token, p90", "s", (quantiles(gateway.TIME_PER_TOKEN, MODEL)[1],), stat=True),
        Panel("Queued requests", "short", (total(router.QUEUED),), stat=True),
        Panel("Oldest in the queue", "s", ((f"max({router.QUEUE_AGE.name})", ""),), stat=True),
    ),
    "Latency": (
        Panel("Time to first token", "s", quantiles(gateway.FIRST_TOKEN, MODEL), gateway.FIRST_TOKEN.help),
        Panel("Time per output token", "s", quantiles(gateway.TIME_PER_TOKEN, MODEL), gateway.TIME_PER_TOKEN.help),
        Panel("Inter-token latency", "s", quantiles(gateway.INTER_TOKEN, MODEL), gateway.INTER_TOKEN.help),
        Panel("End-to-end latency", "s", quantiles(gateway.END_TO_END, MODEL), gateway.END_TO_END.help),
        Panel("Time in the queue", "s", quantiles(gateway.QUEUE_TIME, MODEL), gateway.QUEUE_TIME.help),
        Panel("Time of prefill", "s", quantiles(gateway.PREFILL_TIME, MODEL), gateway.PREFILL_TIME.help),
    ),
    "Traffic": (
        Panel(
            "Tokens per second",
            "short",
            (
                (f"sum(rate({gateway.PROMPT_TOKENS.name}{{{MODEL}}}[$__rate_interval]))", "prompt"),
                (f"sum(rate({gateway.CACHED_TOKENS.name}{{{MODEL}}}[$__rate_interval]))", "prompt, cached"),
                (OUTPUT_TOKENS[0], "output"),
            ),
        ),
        Panel("Ended requests", "reqps", ((rate(gateway.REQUESTS, "outcome"), "{{outcome}}"),)),
        Panel("Prefix cache hits", "percentunit", (CACHE_HITS,), gateway.CACHE_HITS.help, maximum=1),
    ),
    "Pools and KV": (
        Panel("Workers", "short", (gauge(router.POOL, "{{role}}"),)),
        Panel(
            "KV pages in use",
            "percentunit",
            (gauge(router.KV_USAGE, "{{worker}}", WORKER),),
            router.KV_USAGE.help,
            maximum=1,
        ),
        Panel(
            "Predicted peak of KV pages",
            "short",
            (gauge(router.PEAK_PAGES, "{{worker}}", WORKER),),
            router.PEAK_PAGES.help,
        ),
        Panel("Running requests", "short", (gauge(router.RUNNING, "{{worker}}", WORKER),), router.RUNNING.help),
        Panel("Waiting requests", "short", (gauge(router.WAITING, "{{worker}}"),), router.WAITING.help),
        Panel(
            "Preemptions per second",
            "short",
            (
                (rate(router.SWAPS, "worker", WORKER), "swapped {{worker}}"),
                (rate(router.RECOMPUTES, "worker", WORKER), "recomputed {{worker}}"),
            ),
        ),
    ),
    "Queue and refusals": (
        Panel("Requests by phase", "short", (gauge(router.LIVE, "{{phase}}"),), router.LIVE.help),
        Panel("Age of the oldest queued request", "s", (gauge(router.QUEUE_AGE, "oldest"),), router.QUEUE_AGE.help),
        Panel(
            "Refusals",
            "reqps",
            ((rate(router.REFUSED, "cause"), "{{cause}}"), (rate(gateway.REJECTED, "error"), "rejected: {{error}}")),
            router.REFUSED.help,
        ),
    ),
    "Handoffs": (
        Panel("Time of writes", "s", quantiles(router.TRANSFER_TIME), router.TRANSFER_TIME.help),
        Panel("Time not hidden behind prefill", "s", quantiles(router.EXPOSED_TIME), router.EXPOSED_TIME.help),
        Panel(
            "Bytes per second", "Bps", ((f"sum(rate({router.HANDOFF_BYTES.name}_sum[$__rate_interval]))", "written"),)
        ),
        Panel(
            "Failures per second",
            "short",
            ((f"sum(rate({router.TRANSFER_FAILURES.name}[$__rate_interval]))", "failed"),),
            router.TRANSFER_FAILURES.help,
        ),
        Panel(
            "Pages per second",
            "short",
            (
                (f"sum(rate({router.DESCRIPTORS.name}[$__rate_interval]))", "written"),
                (f"sum(rate({router.CACHED_PAGES.name}[$__rate_interval]))", "left out: the target had them"),
            ),
        ),
        Panel(
            "Held pages and links",
            "short",
            (
                gauge(router.UNANSWERED, "unanswered handoffs"),
                gauge(router.FENCED, "fenced writers"),
                gauge(router.BROKEN_LINKS, "broken links between workers"),
                gauge(router.CUT_LINKS, "cut links to gateways"),
            ),
        ),
    ),
    "Predictions": (
        Panel(
            "Error of predicted time to first token",
            "s",
            quantiles(router.TTFT_ERROR, by="side"),
            router.TTFT_ERROR.help,
        ),
        Panel(
            "Error of predicted time per output token",
            "s",
            quantiles(router.TPOT_ERROR, by="side"),
            router.TPOT_ERROR.help,
        ),
        Panel(
            "Error of predicted output length",
            "short",
            quantiles(router.LENGTH_ERROR, by="side"),
            router.LENGTH_ERROR.help,
        ),
    ),
    "Operations and failures": (
        Panel("Operations per second", "short", ((rate(router.OPERATIONS, "kind, state"), "{{kind}} {{state}}"),)),
        Panel(
            "Requests that moved, per second",
            "short",
            (
                (f"sum(rate({router.MIGRATIONS.name}[$__rate_interval]))", "migrations"),
                (f"sum(rate({router.ATTEMPTS.name}[$__rate_interval]))", "retries"),
                (f"sum(rate({router.ROLE_SWITCHES.name}[$__rate_interval]))", "role switches of workers"),
            ),
        ),
        Panel(
            "Workers and sequences at risk",
            "short",
            (
                gauge(router.BREAKER, "workers with an open breaker"),
                gauge(router.LOST, "workers lost in ten minutes"),
                gauge(router.UNCLAIMED, "unclaimed sequences: {{cause}}"),
            ),
        ),
    ),
    "Processes": (
        Panel("Loop lag, p99", "s", (quantiles(gateway.LOOP_LAG, by="process")[2],), gateway.LOOP_LAG.help),
        Panel("Decisions of the router", "s", quantiles(router.DECISION), router.DECISION.help),
        Panel("Open streams", "short", (gauge(gateway.STREAMS, "{{process}}", GATEWAY),), gateway.STREAMS.help),
        Panel("Router connected", "short", (gauge(gateway.ROUTER_CONNECTED, "{{process}}", GATEWAY),), maximum=1),
        Panel(
            "Age of workers' reports", "s", (gauge(router.REPORT_AGE, "{{worker}}", WORKER),), router.REPORT_AGE.help
        ),
        Panel(
            "Tokens not shown, per second",
            "short",
            ((rate(gateway.DROPPED_TOKENS, "cause"), "{{cause}}"),),
            gateway.DROPPED_TOKENS.help,
        ),
    ),
}
