"""A gateway's listeners get every request that has ended, once."""

from __future__ import annotations

import asyncio

import httpx2

import baton
from baton.gateway.build import RunningGateway
from baton.gateway.ended_request import EndedRequest
from baton.protocol.errors import Cancelled, PromptTooLong
from baton.protocol.gateway_messages import RequestEnded, StopRequest, Submit
from baton.protocol.request import FinishReason
from tests.gateway.far_ends import GATEWAY, FarEnds, gateway
from tests.waiting import until_async

PROMPT = [5, 6, 7]


def _listen(running: RunningGateway) -> list[EndedRequest]:
    ended: list[EndedRequest] = []
    running.driver.on_ended.append(ended.append)
    return ended


async def _answered(far: FarEnds, request_id: str) -> None:
    await far.until(Submit, lambda submit: submit.request_id == request_id)
    await far.send_tokens(request_id, range(4), ends=True, cached_tokens=2)


def test_an_answer_over_grpc_and_one_over_http() -> None:
    async def scene() -> None:
        async with gateway() as (running, far):
            ended = _listen(running)
            async with baton.AsyncClient(running.addresses.public) as client:
                answer = asyncio.create_task(client.generate(PROMPT, request_id="a", max_tokens=4))
                await _answered(far, "a")
                await answer
            async with httpx2.AsyncClient(base_url=f"http://{running.addresses.http}") as web:
                body = {"prompt": PROMPT, "max_tokens": 4}
                posted = asyncio.create_task(web.post("/v1/completions", json=body, headers={"x-request-id": "b"}))
                await _answered(far, "b")
                await posted
        assert [(one.request.request_id, one.api, one.resumed) for one in ended] == [
            ("a", "grpc", False),
            ("b", "http", False),
        ]
        for one in ended:
            assert one.end.reason is FinishReason.LENGTH and one.end.error is None
            assert (one.end.prompt_tokens, one.end.output_tokens, one.end.cached_tokens) == (3, 4, 2)
            assert (one.end.prefill_worker, one.end.decode_worker) == ("prefill-0", "decode-0")
            times = one.end.latency
            assert times.first_token_s is not None and times.last_token_s is not None
            assert one.request.arrival_s <= times.first_token_s <= times.last_token_s <= one.ended_s

    asyncio.run(scene())


def test_a_refused_request_and_one_whose_client_has_left() -> None:
    async def scene() -> None:
        async with gateway() as (running, far):
            ended = _listen(running)
            async with baton.AsyncClient(running.addresses.public) as client:
                refused = asyncio.create_task(client.generate(PROMPT, request_id="refused"))
                await far.until(Submit)
                far.router.send(GATEWAY, [RequestEnded("refused", error=PromptTooLong.__name__, message="too long")])
                await asyncio.gather(refused, return_exceptions=True)
                left = asyncio.create_task(client.generate(PROMPT, request_id="left"))
                await far.until(Submit, lambda submit: submit.request_id == "left")
                await far.send_tokens("left", range(2))
                left.cancel()
                await far.until(StopRequest)
                await until_async(lambda: len(ended) == 2)
        assert isinstance(ended[0].end.error, PromptTooLong) and ended[0].end.output_tokens == 0
        assert ended[1].request.request_id == "left" and isinstance(ended[1].end.error, Cancelled)

    asyncio.run(scene())
