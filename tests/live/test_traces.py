"""A live cluster's traces: one tree for a request, whatever died, and one id to find it everywhere."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import httpx
import pytest

import baton
from baton.builtin_model import CHECKPOINT
from baton.config.schema import LoggingSection, TracingSection
from baton.harness.process_cluster import ProcessCluster, plans
from tests.collector import CollectedSpan, Collector, collecting
from tests.live.processes import kill

CALLER = "00f067aa0ba902b7"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
UNSAMPLED = "5bf92f3577b34da6a3ce929d0e0e4736"
PROMPT = list(range(3, 203))
CLIENT_ERRORS_NS = 1_000_000  # Between the clocks of two tasks of one process


def _cluster(collector: Collector) -> ProcessCluster:
    router, worker = plans(CHECKPOINT, 1024, 600, policy="least_loaded", chunk_tokens=64, max_batch=32)
    router = replace(router, tracing=TracingSection(endpoint=collector.endpoint), logging=LoggingSection(access=True))
    return ProcessCluster(router, worker, {"prefill": 1, "decode": 2})


async def _answer(
    cluster: ProcessCluster, request_id: str, prompt: list[int], trace_id: str, flags: str, lose_worker: bool
) -> None:
    """An answer over HTTP, whose decode worker is killed once it has begun."""
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": 300, "ignore_eos": True, "stream": True}
    headers = {"x-request-id": request_id, "traceparent": f"00-{trace_id}-{CALLER}-{flags}", "tracestate": "a=b"}
    url = f"http://{cluster.http_address}/v1/completions"
    async with httpx.AsyncClient(timeout=60) as web, web.stream("POST", url, json=body, headers=headers) as response:
        assert response.status_code == 200
        live = cluster.router.driver.core.requests.live
        lines = []
        async for line in response.aiter_lines():
            lines.append(line)
            if lose_worker and request_id in live and live[request_id].decoding:
                lose_worker = False
                await kill(cluster, live[request_id].decode_worker)
        assert not lose_worker
        assert "data: [DONE]" in lines


def _check_tree(spans: list[CollectedSpan]) -> None:
    """One root below the caller, no orphan, every span inside the root's time."""
    ids = {one.span.span_id.hex() for one in spans}
    (root,) = [one for one in spans if one.span.parent_span_id.hex() == CALLER]
    assert len(ids) == len(spans)
    assert {one.span.parent_span_id.hex() for one in spans if one is not root} == {root.span.span_id.hex()}
    for one in spans:
        assert root.span.start_time_unix_nano - CLIENT_ERRORS_NS <= one.span.start_time_unix_nano
        assert one.span.start_time_unix_nano <= one.span.end_time_unix_nano
        assert one.span.end_time_unix_nano <= root.span.end_time_unix_nano + CLIENT_ERRORS_NS
        for event in one.span.events:
            assert one.span.start_time_unix_nano <= event.time_unix_nano <= one.span.end_time_unix_nano


async def _lose_a_worker(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    async with _cluster(collector) as cluster:
        await _answer(cluster, "unsampled", PROMPT[::-1], UNSAMPLED, "00", lose_worker=False)
        with caplog.at_level(logging.INFO, "baton.access"):
            await _answer(cluster, "find-me", PROMPT, TRACE, "01", lose_worker=True)
        with baton.Admin(cluster.admin_address) as admin:
            explanation = await asyncio.to_thread(admin.explain, "find-me")
    spans = collector.of(TRACE)
    _check_tree(spans)
    assert not collector.of(UNSAMPLED)
    assert {one.attributes["baton.request_id"] for one in collector.spans} == {"find-me"}
    assert {(one.process, one.service) for one in spans} == {("gateway-0", "baton"), ("router", "baton")}

    names = [one.name for one in spans]
    for name, count in {"queue": 1, "prefill": 2, "handoff": 2, "decode": 2, "retry": 1}.items():
        assert names.count(name) == count, names
    (root,) = [one for one in spans if one.process == "gateway-0"]
    (retry,) = [one for one in spans if one.name == "retry"]
    lost, after = [one for one in spans if one.name == "decode"]
    assert root.name == "text_completion measured"
    assert root.span.trace_state == "a=b"
    assert root.attributes["gen_ai.usage.input_tokens"] == len(PROMPT)
    assert root.attributes["gen_ai.usage.output_tokens"] == 300
    assert (root.attributes["baton.attempts"], root.events) == (2, ["first token"])
    assert lost.span.status.message == f"{lost.attributes['baton.worker']} died"
    assert retry.attributes["baton.retry.reason"] == lost.span.status.message
    assert lost.span.end_time_unix_nano <= retry.span.start_time_unix_nano
    assert retry.span.end_time_unix_nano <= after.span.start_time_unix_nano
    first = next(one for one in spans if one.name == "prefill")
    assert first.events == ["chunk computed"] * 4  # 200 tokens in chunks of 64

    # The same request by its id in the explanation and in the access log.
    assert explanation.state == "finished"
    assert (explanation.prefill_worker, explanation.decode_worker) == ("prefill-0", after.attributes["baton.worker"])
    assert (explanation.policy, explanation.why) == (retry.attributes["baton.policy"], retry.attributes["baton.why"])
    (line,) = [record for record in caplog.records if record.__dict__.get("request") == "find-me"]
    fields = line.__dict__["fields"]
    assert (fields["trace_id"], fields["status"], fields["finish_reason"]) == (TRACE, 200, "length")
    assert (fields["prompt_tokens"], fields["output_tokens"]) == (len(PROMPT), 300)


@pytest.mark.slow
def test_a_request_that_survived_its_worker_is_one_tree_and_found_by_its_id(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret")
    with collecting() as collector:
        asyncio.run(asyncio.wait_for(_lose_a_worker(collector, caplog), 120))
    assert set(collector.keys) == {"secret"}
