"""The router's metrics after known events, for two workers and for a thousand."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from baton.builtin_model import CHECKPOINT
from baton.metrics.exposition import Exposition
from baton.metrics.metric import Process
from baton.protocol.errors import HandoffFailed, Overloaded
from baton.protocol.gateway_messages import GatewayInfo, RegisterGateway
from baton.protocol.handoff import HandoffReport
from baton.protocol.latency import Latency
from baton.protocol.request import FinishReason, Objectives, Request, SamplingParams
from baton.protocol.session_messages import LoadReport
from baton.protocol.worker import RoleName
from baton.router.build import start_router
from baton.router.core.commands import OperationUpdated, RequestCompleted
from baton.router.core.completion import Completion
from baton.router.core.core import RouterCore
from baton.router.core.operation import Drain, Operation, OperationState
from baton.router.core.peer_frames import PeerFrames
from baton.router.discovery import discovery_body
from baton.router.driver import Driver
from baton.router.metrics import RouterMetrics
from baton.router.policy.output_length import point
from baton.router.policy.placement import Candidate, RoutingDecision
from baton.router.policy.policies import make_policy
from tests.metrics.scraped import OPENMETRICS, Scraped, scrape
from tests.plans import router_config
from tests.router.hand_driven import ask, join, prompt_of, worker_info

MODEL = {"model_name": "m"}
NO_LINK: Any = None
REPORT = HandoffReport(pages_sent=3, pages_cached=2, bytes_sent=3 << 16, transfer_s=0.02, exposed_s=0.004)
ANSWER = Completion(
    *("r", "gateway-0", FinishReason.STOP, None, 40, 11, Latency(1.0, 1.2, 1.5, 2.5, 11)),
    *("prefill-0", "decode-0", 1, 0, REPORT, 0),
)


def _router(*workers: str) -> tuple[Driver, RouterMetrics]:
    core = RouterCore("router", make_policy("predicted_latency"))
    for name in workers:
        join(core, name, RoleName(name.split("-")[0]))
    driver = Driver(core, NO_LINK, PeerFrames("model", 1000), clock=lambda: 5.0)
    return driver, RouterMetrics(driver, "m", wall_clock=lambda: 1000.0)


def _scraped(metrics: RouterMetrics, openmetrics: bool = False) -> Scraped:
    body, _ = Exposition(metrics.read).encode(metrics.read(), OPENMETRICS if openmetrics else "")
    found = Scraped(body.decode(), openmetrics)
    found.check_declared(Process.ROUTER)
    return found


def test_each_worker_has_its_load_and_the_queue_is_a_series_beside_them() -> None:
    driver, metrics = _router("prefill-0", "decode-0")
    view = driver.core.state.workers["decode-0"]
    load = replace(view.load, running=3, waiting=1, pages_free=50, pages_cached=30, swap_outs=2, recomputes=1)
    driver.core.on_frame("decode-0", "1", [LoadReport(replace(load, sequence_number=1, reservation_ids=("x",)))], 4.0)
    found, decode = _scraped(metrics), {"worker": "decode-0", "role": "decode"}
    assert found.value("vllm:num_requests_running", **MODEL, **decode) == 3
    assert found.value("vllm:num_requests_waiting", **MODEL, **decode) == 1
    assert found.value("vllm:num_requests_waiting", **MODEL, worker="router", role="queue") == 0
    assert found.value("vllm:kv_cache_usage_perc", **MODEL, **decode) == pytest.approx(0.2)
    assert found.value("vllm:num_preemptions_total", **MODEL, **decode) == 3
    assert found.value("vllm:cache_config_info", **MODEL, **decode, block_size="16", num_gpu_blocks="100") == 1
    assert found.value("smg_engine_pd_decode_queue_reqs", **decode) == 1
    assert found.value("baton_worker_swaps_total", **decode) == 2
    assert found.value("baton_worker_report_age_seconds", **decode) == 1
    assert found.value("baton_pool_workers", role="decode") == found.value("baton_pool_workers", role="prefill") == 1


def test_a_lost_worker_has_no_series_and_the_queue_shows_its_age() -> None:
    driver, metrics = _router("decode-0")
    driver.core.on_worker_lost("decode-0", 1.0)
    prompt_of(driver.core, "r", 40, now=2.0)
    found = _scraped(metrics)
    assert "worker" not in {label for name, labels in found.samples if "_worker_" in name for label, _ in labels}
    assert found.value("vllm:num_requests_waiting", **MODEL, worker="router", role="queue") == 1
    assert (found.value("baton_queued_requests"), found.value("baton_queue_oldest_seconds")) == (1, 3)
    assert found.value("baton_live_requests", phase="queued") == 1
    assert found.value("baton_recently_lost_workers") == 1


def test_refusals_have_their_causes() -> None:
    driver, metrics = _router("prefill-0", "decode-0")
    sampling = SamplingParams(max_tokens=5)
    late = Request("late", tuple(range(40)), sampling, 1.0, objectives=Objectives(ttft_s=1e-6))
    slow = Request("slow", tuple(range(40)), sampling, 1.0, objectives=Objectives(tpot_s=1e-9))
    for request in (late, slow):
        ask(driver.core, request)
    prompt_of(driver.core, "long", 5000)
    found = _scraped(metrics)
    assert found.value("baton_refused_requests_total", cause="ttft_objective") == 1
    assert found.value("baton_refused_requests_total", cause="tpot_objective") == 1
    assert found.value("baton_refused_requests_total", cause="PromptTooLong") == 1
    assert Overloaded("x").cause == "Overloaded"


def test_an_ended_request_counts_its_handoff_and_the_errors_of_its_predictions() -> None:
    driver, metrics = _router("prefill-0", "decode-0")
    candidate = Candidate("prefill-0", False, ttft_s=0.5, wait_s=0.0, uncached_tokens=40, tpot_s=0.02)
    decision = RoutingDecision("prefill-0", "decode-0", False, "why", (candidate,))
    driver.core.explanations.decided("r", "policy", decision, point(8))
    driver._perform([RequestCompleted(ANSWER)])
    failed = replace(ANSWER, reason=None, error=HandoffFailed("x"), attempts=3, migrations=2, handoffs_failed=3)
    driver._perform([RequestCompleted(replace(failed, request_id="f", handoff=None))])
    found = _scraped(metrics, openmetrics=True)
    assert found.value("baton_completed_requests_total", outcome="stop") == 1
    assert found.value("baton_completed_requests_total", outcome="HandoffFailed") == 1
    assert (found.value("baton_retries_total"), found.value("baton_migrations_total")) == (2, 2)
    assert found.value("smg_pd_kv_transfer_failures_total", model="m") == 3
    assert found.value("smg_pd_kv_transfer_duration_seconds_sum", model="m") == pytest.approx(0.02)
    assert found.value("baton_handoff_bytes_sum") == 3 << 16
    assert found.value("baton_handoff_exposed_seconds_sum") == pytest.approx(0.004)
    assert found.value("baton_handoff_descriptors_total") == 3
    assert found.value("baton_handoff_cached_pages_total") == 2
    assert found.value("baton_ttft_prediction_error_seconds_sum", side="under") == pytest.approx(0.2)
    assert found.value("baton_tpot_prediction_error_seconds_sum", side="over") == pytest.approx(0.08)
    assert found.value("baton_output_length_error_tokens_sum", side="over") == 3
    assert [one.labels for one in found.exemplars["baton_handoff_exposed_seconds_bucket"]] == [{"request_id": "r"}]


def test_ended_operations_are_counted_once() -> None:
    driver, metrics = _router()
    operation = Operation("op", Drain(("w",)), [], 0.0)
    driver._perform([OperationUpdated(operation)])
    operation.state = OperationState.DONE
    driver._perform([OperationUpdated(operation)])
    assert _scraped(metrics).value("baton_operations_total", kind="drain", state="done") == 1


def test_a_thousand_workers_are_scraped_within_100_ms_and_in_bounded_memory() -> None:
    driver, metrics = _router()
    for index in range(1000):
        driver.core.state.register(worker_info(f"decode-{index}", RoleName.DECODE), 0.0)
    exposition = Exposition(metrics.read)
    exposition.encode(metrics.read(), OPENMETRICS)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(2):
        body, _ = exposition.encode(metrics.read(), OPENMETRICS)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 1 << 22 and peak - before < 50 << 20  # The text itself is a megabyte and a half
    times_s = []
    for _ in range(5):
        began_s = time.thread_time()
        body, _ = exposition.encode(metrics.read(), OPENMETRICS)
        times_s.append(time.thread_time() - began_s)
    assert body.count(b'worker="decode-999"') > 20
    assert min(times_s) < 0.1, times_s
    assert len(driver.core.state.workers) == 1000


def test_the_discovery_lists_every_process_that_can_be_scraped() -> None:
    body = discovery_body("10.0.0.1:8001", {"gateway-1": "10.0.0.2:4001", "gateway-0": ""}, tls=True)
    assert json.loads(body) == [
        {"targets": ["10.0.0.1:8001"], "labels": {"process": "router", "__scheme__": "https"}},
        {"targets": ["10.0.0.2:4001"], "labels": {"process": "gateway-1", "__scheme__": "https"}},
    ]
    assert "__scheme__" not in json.loads(discovery_body("a:1", {}, tls=False))[0]["labels"]


def test_the_router_serves_both_over_http() -> None:
    async def scene() -> None:
        running = await start_router(router_config(CHECKPOINT))
        try:
            info = GatewayInfo("gateway-0", "1", "tcp://127.0.0.1:5600", metrics_address="127.0.0.1:4001")
            running.driver.core.on_frame("gateway-0", "1", [RegisterGateway(info)], running.driver.clock())
            address = running.addresses.admin_http
            found = await scrape(address)
            assert (found.value("baton_gateways"), found.value("baton_queued_requests")) == (1, 0)
            async with httpx2.AsyncClient() as client:
                targets = (await client.get(f"http://{address}/sd")).json()
            assert [one["targets"] for one in targets] == [[address], ["127.0.0.1:4001"]]
        finally:
            await running.stop()

    asyncio.run(scene())
