"""Which requests a gateway traces, what it sends of that to the router, and what a collector that is away costs."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Mapping

import grpc
import httpx
import pytest

from baton.config.schema import TracingSection
from baton.gateway.access_lines import access_line
from baton.gateway.build import RunningGateway
from baton.protocol.errors import ConfigError
from baton.protocol.gateway_messages import Submit
from baton.protocol.trace_context import TraceContext
from baton.protocol.v1 import inference_pb2
from baton.protocol.v1.inference_pb2_grpc import InferenceStub
from baton.tracing.export import FLUSH_S, traces_url
from baton.tracing.start import start_export
from tests.collector import Collector, collecting
from tests.gateway.far_ends import FarEnds, gateway
from tests.waiting import until_async

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{CALLER}-01"
BODY = {"prompt": [5, 6, 7], "max_tokens": 4}


async def _post(
    running: RunningGateway, far: FarEnds, request_id: str, headers: Mapping[str, str], sequences: int = 1
) -> Submit:
    """An answered body; returns what the gateway submitted of it first."""
    async with httpx.AsyncClient(base_url=f"http://{running.addresses.http}") as web:
        asked = {"x-request-id": request_id, **headers}
        posted = asyncio.create_task(web.post("/v1/completions", json={**BODY, "n": sequences}, headers=asked))
        for number in range(sequences):
            name = f"{request_id}-{number}" if number else request_id
            await far.until(Submit, lambda submit, name=name: submit.request_id == name)  # type: ignore[misc]
            await far.send_tokens(name, range(4), ends=True)
        assert (await posted).status_code == 200
    return await far.until(Submit, lambda submit: submit.request_id == request_id)


def _section(collector: Collector, sample: float = 1.0) -> TracingSection:
    return TracingSection(endpoint=collector.endpoint, sample=sample)


def test_a_request_continues_its_callers_trace_over_http_and_grpc() -> None:
    async def scene(collector: Collector) -> list[TraceContext | None]:
        async with gateway(tracing=_section(collector)) as (running, far):
            submits = [await _post(running, far, "http", {"traceparent": PARENT})]
            async with grpc.aio.insecure_channel(running.addresses.public) as channel:
                ask = inference_pb2.GenerateRequest(request_id="grpc")
                ask.token_ids.ids.extend([5, 6, 7])
                ask.sampling.max_tokens = 4
                call = InferenceStub(channel).Generate(ask, metadata=(("traceparent", PARENT),))
                submits.append(await far.until(Submit, lambda submit: submit.request_id == "grpc"))
                await far.send_tokens("grpc", range(4), ends=True)
                async for _ in call:
                    pass
        return [submit.trace for submit in submits]

    with collecting() as collector:
        contexts = asyncio.run(scene(collector))
    spans = collector.of(TRACE)
    assert [one.attributes["baton.api"] for one in spans] == ["http", "grpc"]
    assert {one.span.parent_span_id.hex() for one in spans} == {CALLER}
    assert contexts == [TraceContext(bytes.fromhex(TRACE), one.span.span_id) for one in spans]


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": PARENT.upper()},
        {"traceparent": PARENT + "-00"},
        {"traceparent": f"ff-{TRACE}-{CALLER}-01"},
        {"traceparent": f"00-{'0' * 32}-{CALLER}-01"},
        {"traceparent": f"00-{TRACE}-{'0' * 16}-01"},
        {"traceparent": "00" * 400},
        {"tracestate": "a=b"},
    ],
)
def test_an_invalid_traceparent_is_as_none(headers: dict[str, str]) -> None:
    async def scene(collector: Collector) -> None:
        async with gateway(tracing=_section(collector)) as (running, far):
            await _post(running, far, "r", headers)

    with collecting() as collector:
        asyncio.run(scene(collector))
    (one,) = collector.spans
    assert one.span.trace_id.hex() != TRACE
    assert (one.span.parent_span_id, one.span.trace_state) == (b"", "")


def test_a_request_that_is_not_sampled_sends_nothing_to_router_or_collector() -> None:
    async def scene(collector: Collector) -> list[TraceContext | None]:
        async with gateway(tracing=_section(collector, sample=0.0)) as (running, far):
            submits = [
                await _post(running, far, "own", {}),
                await _post(running, far, "callers", {"traceparent": PARENT[:-2] + "00"}),
                await _post(running, far, "sampled", {"traceparent": PARENT}),
            ]
        return [submit.trace for submit in submits]

    with collecting() as collector:
        contexts = asyncio.run(scene(collector))
    assert contexts[:2] == [None, None]
    assert contexts[2] is not None
    assert [one.attributes["baton.request_id"] for one in collector.spans] == ["sampled"]


def test_the_sequences_of_a_body_are_below_one_span() -> None:
    async def scene(collector: Collector) -> None:
        async with gateway(tracing=_section(collector)) as (running, far):
            await _post(running, far, "two", {"traceparent": PARENT}, sequences=2)

    with collecting() as collector:
        asyncio.run(scene(collector))
    spans = collector.of(TRACE)
    (body,) = [one for one in spans if one.span.parent_span_id.hex() == CALLER]
    assert body.attributes["baton.sequences"] == 2
    below = [one for one in spans if one is not body]
    assert {one.span.parent_span_id for one in below} == {body.span.span_id}
    assert sorted(str(one.attributes["baton.request_id"]) for one in below) == ["two", "two-1"]


@pytest.mark.parametrize("listens", [False, True])
def test_a_collector_that_is_away_or_silent_costs_no_request_and_no_long_stop(listens: bool) -> None:
    async def scene(endpoint: str) -> float:
        async with gateway(tracing=TracingSection(endpoint=endpoint)) as (running, far):
            for number in range(20):
                await _post(running, far, f"r{number}", {})
            stopping_s = time.monotonic()
        return time.monotonic() - stopping_s

    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        if not listens:
            taken.close()
        assert asyncio.run(scene(endpoint)) < FLUSH_S + 5.0


def test_an_endpoint_without_the_libraries_is_an_error_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "baton.tracing.export", None)  # As if an import in it had failed
    assert start_export(TracingSection(), "gateway-0") is None
    with pytest.raises(ConfigError, match=r"pip install 'baton-serve\[tracing\]'"):
        start_export(TracingSection(endpoint="http://localhost:4318"), "gateway-0")


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://localhost:4318", "http://localhost:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("https://vendor/otlp/v1/traces", "https://vendor/otlp/v1/traces"),
    ],
)
def test_a_collectors_address_gets_the_standard_path(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


def test_an_access_line_has_the_numbers_of_the_request_and_of_its_failure(caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "baton.access"]

    async def scene() -> None:
        async with gateway(access_log=True) as (running, far):
            await _post(running, far, "good", {})
            async with httpx.AsyncClient(base_url=f"http://{running.addresses.http}") as web:
                posted = asyncio.create_task(web.post("/v1/completions", json=BODY, headers={"x-request-id": "bad"}))
                await far.until(Submit, lambda submit: submit.request_id == "bad")
                posted.cancel()
                await asyncio.gather(posted, return_exceptions=True)
                refused = await web.post("/v1/completions", json={"prompt": 3}, headers={"x-request-id": "refused"})
                assert refused.status_code == 400
                await until_async(lambda: len(lines()) == 3)
            async with grpc.aio.insecure_channel(running.addresses.public) as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    async for _ in InferenceStub(channel).Generate(inference_pb2.GenerateRequest(request_id="empty")):
                        pass

    with caplog.at_level(logging.INFO, "baton.access"):
        asyncio.run(scene())
    good, *others, empty = lines()
    bad, refused = sorted(others, key=lambda record: record.__dict__["request"])
    fields = good.__dict__["fields"]
    assert (good.__dict__["request"], fields["method"], fields["status"]) == ("good", "http", 200)
    assert (fields["prompt_tokens"], fields["output_tokens"], fields["finish_reason"]) == (3, 4, "length")
    assert 0 <= fields["ttft_s"] <= fields["duration_s"]
    assert "trace_id" not in fields
    assert good.getMessage() == access_line(fields)
    assert good.getMessage().startswith("http 200 length; 3 prompt (0 cached) + 4 output tokens, first after 0.")
    assert (bad.__dict__["fields"]["error"], bad.__dict__["fields"]["status"]) == ("Cancelled", 499)
    assert bad.__dict__["fields"]["ttft_s"] is None
    assert (refused.__dict__["request"], empty.__dict__["request"]) == ("refused", "empty")
    assert refused.__dict__["fields"]["status"] == 400
    assert refused.getMessage().startswith("http 400 InvalidField: ")
    assert empty.__dict__["fields"]["status"] == "INVALID_ARGUMENT"
