"""A gateway's metrics after known requests, as Prometheus reads them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import httpx2

import baton
from baton.builtin_model import CHECKPOINT
from baton.config.schema import AccessSection
from baton.gateway.build import start_gateway
from baton.gateway.core.live_stream import LiveStream
from baton.gateway.metrics import exemplar_labels
from baton.metrics.metric import Process
from baton.metrics.values import Distribution
from baton.protocol.errors import InvalidRequest
from baton.protocol.gateway_messages import RegisterGateway, StopRequest, Submit
from baton.protocol.latency import Latency
from baton.tracing.request_trace import RequestTrace
from tests.gateway.far_ends import FarEnds, gateway
from tests.metrics.scraped import OPENMETRICS, scrape
from tests.plans import gateway_config
from tests.waiting import until_async

PROMPT = [5, 6, 7]
MODEL = {"model_name": "model"}


async def _answered(far: FarEnds, request_id: str) -> None:
    """The worker sends two tokens, then two more, of which the last is the end."""
    await far.until(Submit, lambda submit: submit.request_id == request_id)
    await far.send_tokens(request_id, range(2), cached_tokens=2)
    await far.send_tokens(request_id, range(2, 4), ends=True)


async def _leave(client: baton.AsyncClient, far: FarEnds) -> None:
    left = asyncio.create_task(client.generate(PROMPT, request_id="left", max_tokens=9))
    await far.until(Submit, lambda submit: submit.request_id == "left")
    left.cancel()
    await far.until(StopRequest)


def test_the_values_after_known_requests() -> None:
    async def scene() -> None:
        async with gateway() as (running, far), baton.AsyncClient(running.addresses.public) as client:
            address = running.driver.session.info.metrics_address
            before = await scrape(address)
            assert before.value("vllm:request_success_total", **MODEL, finished_reason="stop") == 0
            for name in ("first", "second"):
                answer = asyncio.create_task(client.generate(PROMPT, request_id=name, max_tokens=4))
                await _answered(far, name)
                await answer
            await _leave(client, far)
            try:
                await client.generate([], request_id="invalid")
            except baton.BatonError as error:
                assert type(error).__name__ == InvalidRequest.__name__
            driver = running.driver
            await until_async(lambda: not driver.session.streams and any(driver.loop_lag.counts))
            found = await scrape(address, OPENMETRICS)
            found.check_declared(Process.GATEWAY)
            assert found.value("vllm:time_to_first_token_seconds_count", **MODEL) == 2
            assert found.value("vllm:e2e_request_latency_seconds_count", **MODEL) == 2
            assert 1 <= found.value("vllm:inter_token_latency_seconds_count", **MODEL) <= 6
            assert found.value("vllm:prompt_tokens_total", **MODEL) == 6
            assert found.value("vllm:generation_tokens_total", **MODEL) == 8
            assert found.value("vllm:prefix_cache_queries_total", **MODEL) == 6
            assert found.value("vllm:prefix_cache_hits_total", **MODEL) == 4
            assert found.value("vllm:request_generation_tokens_sum", **MODEL) == 8
            assert found.value("vllm:request_params_max_tokens_bucket", **MODEL, le="5.0") == 2
            assert found.value("vllm:request_params_max_tokens_bucket", **MODEL, le="10.0") == 3
            reasons = {"stop": 0, "length": 2, "abort": 1, "error": 0}
            for reason, count in reasons.items():
                assert found.value("vllm:request_success_total", **MODEL, finished_reason=reason) == count
            assert found.value("baton_requests_total", api="grpc", outcome="length") == 2
            assert found.value("baton_requests_total", api="grpc", outcome="Cancelled") == 1
            assert found.value("baton_rejected_requests_total", api="grpc", error="InvalidRequest") == 1
            assert (found.value("baton_opened_streams_total"), found.value("baton_streams")) == (3, 0)
            assert (found.value("baton_known_workers"), found.value("baton_router_connected")) == (1, 1)
            assert found.total("baton_loop_lag_seconds_count") > 0
            assert found.value("process_cpu_seconds_total") > 0
            assert "second" in {exemplar.labels["request_id"] for exemplar in found.exemplars[TTFT_BUCKET]}
            assert found.exemplars["vllm:e2e_request_latency_seconds_bucket"]

    asyncio.run(scene())


def test_an_exemplar_has_the_trace_of_a_sampled_request() -> None:
    trace = RequestTrace("chat", 0xABC, 1, None, False, True)
    assert exemplar_labels("r", trace) == (("request_id", "r"), ("trace_id", f"{0xABC:032x}"))
    for unsampled in (None, replace(trace, sampled=False)):
        assert exemplar_labels("r", unsampled) == (("request_id", "r"),)


TTFT_BUCKET = "vllm:time_to_first_token_seconds_bucket"


def test_the_phases_of_a_request_add_up() -> None:
    async def scene() -> None:
        async with gateway() as (running, far), baton.AsyncClient(running.addresses.public) as client:
            answer = asyncio.create_task(client.generate(PROMPT, request_id="r", max_tokens=4))
            await _answered(far, "r")
            await answer
            found = await scrape(running.driver.session.info.metrics_address)
            phases = ("request_queue_time", "request_prefill_time", "request_decode_time", "e2e_request_latency")
            *parts, whole = (found.value(f"vllm:{phase}_seconds_sum", **MODEL) for phase in phases)
            assert min(parts) >= 0 and abs(sum(parts) - whole) < 1e-6

    asyncio.run(scene())


def test_outputs_are_counted_by_the_time_since_the_earlier_one() -> None:
    gaps, stream = Distribution((0.01, 0.1)), object.__new__(LiveStream)
    stream.latency = Latency(0.0)
    for count, now in ((1, 5.0), (1, 5.005), (3, 5.05), (1, 6.0)):
        stream.on_tokens(count, now, gaps)
    assert gaps.counts == [1, 1, 1]  # The first output has none before it
    assert stream.latency.num_tokens == 6


def test_the_port_is_the_gateways_own_and_its_router_learns_it() -> None:
    async def scene() -> None:
        async with gateway() as (running, far):
            info = far.of(RegisterGateway)[0].info
            assert running.metrics_server is not None
            assert info.metrics_address == f"127.0.0.1:{running.metrics_server.port}"
            assert running.metrics_server.port != running.http_port
            assert (await scrape(running.addresses.http)).value("baton_streams") == 0
        async with gateway(metrics_port="off") as (running, far):
            assert far.of(RegisterGateway)[0].info.metrics_address == ""
            assert running.metrics_server is None

    asyncio.run(scene())


def test_metrics_need_the_role_watch_and_tenants_of_the_token_file_are_a_label(tmp_path: Path) -> None:
    entries = [("user", "generate"), ("watcher", "watch"), ("operator", "admin")]
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        "".join(
            f'[[token]]\nsha256 = "{sha256(token.encode()).hexdigest()}"\ntenant = "acme"\nroles = ["{role}"]\n'
            for token, role in entries
        )
    )

    async def scene() -> None:
        config = gateway_config(CHECKPOINT, access=AccessSection(tokens_file=str(tokens)))
        running = await start_gateway(config)
        try:
            address = running.driver.session.info.metrics_address
            async with httpx2.AsyncClient() as web:
                for place in (address, running.addresses.http):
                    for token, status in (("", 401), ("user", 403), ("watcher", 200), ("operator", 200)):
                        headers = {"authorization": f"Bearer {token}"} if token else {}
                        assert (await web.get(f"http://{place}/metrics", headers=headers)).status_code == status
                assert (await web.get(f"http://{address}/v1/models", headers=headers)).status_code == 404
                refused = await web.post(f"http://{running.addresses.http}/v1/completions", json={"prompt": "a"})
                assert refused.status_code == 401
            found = await scrape(address, token="watcher")
            assert found.value("baton_rejected_requests_total", api="http", error="Unauthenticated") == 1
        finally:
            await running.stop(0.0)

    asyncio.run(scene())
