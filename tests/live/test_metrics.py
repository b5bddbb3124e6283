"""What a live cluster's metrics show of known requests, and one request found by its id."""

from __future__ import annotations

import asyncio

import baton
from baton.harness.process_cluster import ProcessCluster
from baton.metrics.metric import Process
from tests.live.processes import Play
from tests.metrics.scraped import OPENMETRICS, scrape

PROMPT, TOKENS = [7] * 100, 40
NAMES = [f"seen-{number}" for number in range(4)]


async def _known_requests(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
    model = {"model_name": cluster.router_config.model_name}
    router, gateway = cluster.router.addresses.admin_http, cluster.gateway.driver.session.info.metrics_address
    before, before_there = await scrape(gateway, OPENMETRICS), await scrape(router, OPENMETRICS)
    answers = [client.generate(PROMPT, request_id=name, max_tokens=TOKENS, ignore_eos=True) for name in NAMES]
    handed_over = sum(answer.handoff is not None for answer in await asyncio.gather(*answers))
    await cluster.until_idle()
    after, there = await scrape(gateway, OPENMETRICS), await scrape(router, OPENMETRICS)
    after.check_declared(Process.GATEWAY)
    there.check_declared(Process.ROUTER)

    def more(name: str) -> float:
        return after.total(name) - before.total(name)

    assert more("vllm:generation_tokens_total") == len(NAMES) * TOKENS
    assert more("vllm:prompt_tokens_total") == len(NAMES) * len(PROMPT)
    assert more("vllm:time_to_first_token_seconds_count") == len(NAMES)
    assert 0 < more("vllm:inter_token_latency_seconds_count") <= len(NAMES) * (TOKENS - 1)
    assert more("vllm:prefix_cache_hits_total") <= more("vllm:prefix_cache_queries_total") == len(NAMES) * len(PROMPT)
    reason = {**model, "finished_reason": "length"}
    name = "vllm:request_success_total"
    assert after.value(name, **reason) - before.value(name, **reason) == len(NAMES)
    handoffs = "smg_pd_kv_transfer_duration_seconds_count"
    assert there.total(handoffs) - before_there.total(handoffs) == handed_over
    assert there.total("vllm:num_requests_running") == there.total("baton_queued_requests") == 0
    assert there.total("baton_pool_workers") == len(cluster.names)
    assert there.total("baton_router_decision_seconds_count") > before_there.total(
        "baton_router_decision_seconds_count"
    )
    found = {one.labels["request_id"] for one in after.exemplars["vllm:e2e_request_latency_seconds_bucket"]}
    (seen, *_) = sorted(found & set(NAMES))
    assert cluster.router.driver.core.explanations.get(seen) is not None


def test_metrics_show_the_known_requests(play: Play) -> None:
    play(_known_requests)
