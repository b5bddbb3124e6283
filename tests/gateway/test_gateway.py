"""A gateway with its real links and server, between a client and the far ends of router and worker."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import baton
from baton.gateway.build import start_gateway
from baton.gateway.grpc_service import SERVICE
from baton.links.keys import new_secret
from baton.protocol.errors import Cancelled, ConfigError, NoRouter
from baton.protocol.gateway_messages import (
    GatewayLoad,
    RegisterGateway,
    RequestEnded,
    ServingPools,
    StopRequest,
    Submit,
    WorkerLeft,
)
from baton.protocol.session_messages import Goodbye
from baton.protocol.v1 import inference_pb2, inference_pb2_grpc
from tests.gateway.far_ends import GATEWAY, WORKER, FarEnds, config, gateway
from tests.waiting import until_async

PROMPT = [5, 6, 7]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4096)]  # Else megabytes may be in flight


async def _answer(client: baton.AsyncClient, far: FarEnds, request_id: str = "r", tokens: int = 4) -> baton.Answer:
    answer = asyncio.create_task(client.generate(PROMPT, request_id=request_id, max_tokens=tokens))
    await far.until(Submit, lambda message: message.request_id == request_id)
    await far.send_tokens(request_id, range(tokens), ends=True)
    return await answer


@pytest.mark.parametrize("secret", ["", new_secret()], ids=["open links", "keys"])
def test_an_answer_has_the_tokens_of_the_worker_and_the_route_of_the_router(secret: str) -> None:
    async def scene() -> None:
        async with gateway(secret) as (running, far), baton.AsyncClient(running.addresses.public) as client:
            answer = await _answer(client, far)
            assert answer.token_ids == [100, 101, 102, 103]
            assert (answer.prefill_worker, answer.decode_worker) == ("prefill-0", "decode-0")
            submit = far.of(Submit)[0]
            assert (submit.num_prompt_tokens, submit.max_tokens, submit.resumed) == (3, 4, False)
            assert 0 <= submit.age_s < 20
            assert not running.driver._subscriptions
            assert not far.of(StopRequest)

    asyncio.run(scene())


def test_the_router_learns_where_workers_and_clients_connect_and_gets_the_load_until_the_goodbye() -> None:
    async def scene() -> None:
        async with gateway() as (running, far):
            info = far.of(RegisterGateway)[0].info
            assert (info.name, info.worker_address) == (GATEWAY, running.addresses.worker)
            assert info.public_address == running.addresses.public
            async with baton.AsyncClient(running.addresses.public) as client:
                await _answer(client, far)
            load = await far.until(GatewayLoad, lambda load: load.requests == 1)
            assert (load.streams, load.tokens) == (0, 4)
            assert load.cpu_s > 0
        assert far.of(Goodbye)

    asyncio.run(scene())


def test_without_a_router_a_request_waits_and_then_fails() -> None:
    async def scene() -> None:
        running = await start_gateway(config(router_grace_s=0.5))
        try:
            async with grpc.aio.insecure_channel(running.addresses.public) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
                call = inference_pb2_grpc.InferenceStub(channel).Generate(
                    inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=PROMPT))
                )
                with pytest.raises(grpc.aio.AioRpcError, match="no connection to the router") as caught:
                    await call.read()
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert ("baton-error", NoRouter.__name__) in tuple(caught.value.trailing_metadata() or ())
        finally:
            await running.stop(0.0)

    asyncio.run(scene())


def test_a_gateway_that_stops_fails_its_health_check_while_a_stream_goes_on() -> None:
    async def scene() -> None:
        far = FarEnds()
        far.start()
        running = await start_gateway(replace(config(), router_address=far.router.address))
        async with grpc.aio.insecure_channel(running.addresses.public) as channel:
            watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            while (await watched.read()).status != SERVING:
                pass
            request = inference_pb2.GenerateRequest(request_id="r", token_ids=inference_pb2.TokenIds(ids=PROMPT))
            request.sampling.max_tokens = 2
            call = inference_pb2_grpc.InferenceStub(channel).Generate(request)
            await far.until(Submit)
            stopping = asyncio.create_task(running.stop(20.0))
            assert (await watched.read()).status == NOT_SERVING
            assert str(running.driver.unready) == "This gateway is stopping."
            watched.cancel()
            await far.send_tokens("r", range(2), ends=True)
            ends = [response.finish.usage.output_tokens async for response in call if response.HasField("finish")]
            assert ends == [2]
            await stopping
        far.close()

    asyncio.run(scene())


@pytest.mark.parametrize("service", ["", SERVICE])
def test_a_health_check_follows_the_router_and_the_pools(service: str) -> None:
    async def scene() -> None:
        async with (
            gateway(router_grace_s=0.3) as (running, far),
            grpc.aio.insecure_channel(running.addresses.public) as channel,
        ):
            watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))

            async def until(status: int) -> None:
                while (await watched.read()).status != status:
                    pass

            await until(SERVING)
            far.router.send(GATEWAY, [ServingPools(True, False)])
            await until(NOT_SERVING)
            far.router.send(GATEWAY, [ServingPools(True, True)])
            await until(SERVING)
            far.stop_router()
            await until(NOT_SERVING)
            far.restart_router()
            await until(SERVING)
            watched.cancel()

    asyncio.run(scene())


def test_gateways_share_a_port_but_not_with_other_programs() -> None:
    async def scene() -> None:
        first = await start_gateway(config())
        second = await start_gateway(replace(config(port=first.port), name="gateway-1"))
        assert second.port == first.port
        await first.stop(0.0)
        async with baton.AsyncClient(second.addresses.public) as client:
            assert (await client.model()).name == "model"
        await second.stop(0.0)
        with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigError, match="the port is in use"):
            await start_gateway(config(port=other.getsockname()[1]))

    asyncio.run(scene())


def test_an_error_of_the_router_reaches_the_client_with_its_name_and_retry_delay() -> None:
    async def scene() -> None:
        async with gateway() as (running, far), grpc.aio.insecure_channel(running.addresses.public) as channel:
            call = inference_pb2_grpc.InferenceStub(channel).Generate(
                inference_pb2.GenerateRequest(request_id="r", token_ids=inference_pb2.TokenIds(ids=PROMPT))
            )
            await far.until(Submit)
            far.router.send(GATEWAY, [RequestEnded("r", error="Overloaded", message="Too much.", retry_after_s=1.5)])
            with pytest.raises(grpc.aio.AioRpcError, match=r"Too much\.") as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            expected = {("baton-error", "Overloaded"), ("retry-after-ms", "1500")}
            assert expected <= set(caught.value.trailing_metadata() or ())

    asyncio.run(scene())


def test_a_client_that_leaves_stops_its_request() -> None:
    async def scene() -> None:
        async with gateway() as (running, far), grpc.aio.insecure_channel(running.addresses.public) as channel:
            message = inference_pb2.GenerateRequest(request_id="r", token_ids=inference_pb2.TokenIds(ids=PROMPT))
            call = inference_pb2_grpc.InferenceStub(channel).Generate(message)
            await far.until(Submit)
            call.cancel()
            assert (await far.until(StopRequest)).error == Cancelled.__name__
            late = inference_pb2_grpc.InferenceStub(channel).Generate(
                inference_pb2.GenerateRequest(request_id="late", token_ids=message.token_ids), timeout=0.3
            )
            with pytest.raises(grpc.aio.AioRpcError):
                await late.read()
            stop = await far.until(StopRequest, lambda stop: stop.request_id == "late")
            assert stop.error == "DeadlineExceeded"
            assert not running.driver._subscriptions

    asyncio.run(scene())


def test_the_newest_client_of_a_request_gets_its_stream() -> None:
    async def scene() -> None:
        async with gateway() as (running, far), grpc.aio.insecure_channel(running.addresses.public) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            message = inference_pb2.GenerateRequest(request_id="r", token_ids=inference_pb2.TokenIds(ids=PROMPT))
            message.sampling.max_tokens = 6
            earlier = stub.Generate(message)
            await far.until(Submit)
            await far.send_tokens("r", range(3))
            assert [token.index for token in (await earlier.read()).tokens] == [0, 1, 2]
            message.resume_from = 1
            newest = stub.Generate(message)
            assert [token.index for token in (await newest.read()).tokens] == [1, 2]
            with pytest.raises(grpc.aio.AioRpcError, match="Another client has taken over"):
                await earlier.read()
            await far.send_tokens("r", range(3, 6), ends=True)
            indexes = []
            while (response := await newest.read()) is not grpc.aio.EOF:
                indexes += [token.index for token in response.tokens]
            assert indexes == [3, 4, 5]
            assert [submit.submission for submit in far.of(Submit)] == [0, 1]

    asyncio.run(scene())


def test_a_client_that_does_not_read_is_cut_and_delays_no_other() -> None:
    async def scene() -> None:
        async with (
            gateway(write_timeout_s=1.0) as (running, far),
            grpc.aio.insecure_channel(running.addresses.public, SMALL_WINDOW) as channel,
            baton.AsyncClient(running.addresses.public) as client,
        ):
            message = inference_pb2.GenerateRequest(request_id="slow", token_ids=inference_pb2.TokenIds(ids=PROMPT))
            message.sampling.max_tokens, message.sampling.logprobs = 2000, 20
            call = inference_pb2_grpc.InferenceStub(channel).Generate(message)
            await far.until(Submit)
            likeliest = tuple((token_id, -1.0) for token_id in range(20))
            for start in range(0, 1900, 100):
                await far.send_tokens("slow", range(start, start + 100), logprob=-0.5, top_logprobs=likeliest)
            assert (await _answer(client, far)).token_ids == [100, 101, 102, 103]
            assert running.driver._subscriptions["slow"].writing_since_s is not None
            stop = await far.until(StopRequest)
            assert (stop.request_id, stop.error) == ("slow", Cancelled.__name__)
            await until_async(lambda: not running.driver._subscriptions)
            indexes: list[int] = []
            with pytest.raises(grpc.aio.AioRpcError, match=r"has not read its stream for 1 s") as caught:
                async for response in call:
                    indexes += [token.index for token in response.tokens]
            assert caught.value.code() is grpc.StatusCode.CANCELLED
            assert indexes == list(range(len(indexes)))
            assert len(indexes) < 1900

    asyncio.run(scene())


def test_invalid_bytes_and_a_missing_prompt_are_refused_with_a_sentence() -> None:
    async def scene() -> None:
        running = await start_gateway(config())
        async with grpc.aio.insecure_channel(running.addresses.public) as channel:
            for data, words in ((b"\xff\xff", "Not a valid GenerateRequest"), (b"", "The prompt is missing")):
                with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
                    await channel.unary_stream(f"/{SERVICE}/Generate")(data).read()
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await running.stop(0.0)

    asyncio.run(scene())


def test_a_worker_that_has_left_is_accepted_no_more() -> None:
    async def scene() -> None:
        async with gateway(new_secret()) as (running, far):
            await until_async(lambda: far.attached)
            assert WORKER in running.driver.worker_keys
            far.router.send(GATEWAY, [WorkerLeft(WORKER)])
            await until_async(lambda: WORKER not in running.driver.worker_keys)
            assert not running.driver.workers.send(WORKER, [])

    asyncio.run(scene())
