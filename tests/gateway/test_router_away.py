"""A gateway whose router dies, restarts or does not read."""

from __future__ import annotations

import asyncio

import grpc.aio

from baton.protocol.gateway_messages import AttachStreams, RegisterGateway, Submit
from baton.protocol.v1 import inference_pb2, inference_pb2_grpc
from tests.gateway.far_ends import GATEWAY, ended, gateway
from tests.waiting import until_async


def _request(request_id: str) -> inference_pb2.GenerateRequest:
    message = inference_pb2.GenerateRequest(request_id=request_id, token_ids=inference_pb2.TokenIds(ids=[5, 6, 7]))
    message.sampling.max_tokens = 6
    return message


async def _indexes(call: grpc.aio.UnaryStreamCall[object, inference_pb2.GenerateResponse], count: int) -> list[int]:
    indexes: list[int] = []
    while len(indexes) < count:
        indexes += [token.index for token in (await call.read()).tokens]
    return indexes


def test_a_stream_that_has_begun_goes_on_without_the_router_and_is_submitted_to_the_next_one() -> None:
    async def scene() -> None:
        async with gateway() as (running, far), grpc.aio.insecure_channel(running.addresses.public) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            begun, waiting = stub.Generate(_request("begun")), stub.Generate(_request("waiting"))
            await until_async(lambda: len(far.of(Submit)) == 2)
            await far.send_tokens("begun", range(2))
            assert await _indexes(begun, 2) == [0, 1]

            far.stop_router()
            await until_async(lambda: not running.driver.session.router_up)
            await far.send_tokens("begun", range(2, 4))
            assert await _indexes(begun, 2) == [2, 3]
            assert running.driver.serving

            far.restart_router()
            await until_async(lambda: len(far.of(Submit)) == 2)
            assert set(far.of(RegisterGateway)[0].request_ids) == {"begun", "waiting"}
            resumed = {submit.request_id: submit for submit in far.of(Submit)}
            assert {submit.resumed for submit in resumed.values()} == {True}
            assert [resumed[name].num_emitted for name in ("begun", "waiting")] == [4, 0]
            await far.send_tokens("begun", range(4, 6), ends=True)
            await far.send_tokens("waiting", range(6), ends=True)
            assert await _indexes(begun, 2) == [4, 5]
            assert await _indexes(waiting, 6) == list(range(6))

    asyncio.run(scene())


def test_a_stream_that_is_complete_while_the_router_is_away_ends_at_once() -> None:
    async def scene() -> None:
        async with gateway() as (running, far), grpc.aio.insecure_channel(running.addresses.public) as channel:
            call = inference_pb2_grpc.InferenceStub(channel).Generate(_request("r"))
            await far.until(Submit)
            far.stop_router()
            await until_async(lambda: not running.driver.session.router_up)
            await far.send_tokens("r", range(6), ends=True)
            finish = [response.finish async for response in call if response.HasField("finish")]
            assert finish[0].usage.output_tokens == 6
            assert finish[0].route.decode_worker == "decode-0"
            far.restart_router()
            await running.registered()

    asyncio.run(scene())


def test_a_router_that_takes_no_messages_is_registered_with_again() -> None:
    async def scene() -> None:
        async with gateway() as (running, far), grpc.aio.insecure_channel(running.addresses.public) as channel:
            call = inference_pb2_grpc.InferenceStub(channel).Generate(_request("r"))
            await far.until(Submit)
            driver = running.driver
            full = len(far.received)
            send, driver.router.send = driver.router.send, lambda batch: False  # type: ignore[method-assign]
            driver._report(driver.clock())
            assert not driver.registered.is_set()
            assert not driver.session.router_up
            driver.router.send = send  # type: ignore[method-assign]
            await running.registered()
            again = far.received[full:]
            assert [type(message) for message in again if not isinstance(message, AttachStreams)][:2] == [
                RegisterGateway,
                Submit,
            ]
            far.router.send(GATEWAY, [ended("r", 6)])
            await far.send_tokens("r", range(6))
            assert await _indexes(call, 6) == list(range(6))

    asyncio.run(scene())
