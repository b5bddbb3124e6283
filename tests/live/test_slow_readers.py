"""A client that does not read delays no other client, and gets its complete answer when it reads again."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest

import baton
from baton.harness.process_cluster import ProcessCluster
from baton.protocol.v1 import inference_pb2, inference_pb2_grpc
from tests.live.processes import Play

TOKENS = 900
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4096)]  # else megabytes may be in flight


def _slow_request() -> inference_pb2.GenerateRequest:
    """An answer with more bytes than the connection between gateway and client buffers."""
    request = inference_pb2.GenerateRequest(request_id="slow", token_ids=inference_pb2.TokenIds(ids=[9] * 40))
    request.sampling.max_tokens, request.sampling.ignore_eos, request.sampling.logprobs = TOKENS, True, 20
    return request


async def _never_reads(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
    core, gateway = cluster.router.driver.core, cluster.gateway.driver
    async with grpc.aio.insecure_channel(cluster.address, SMALL_WINDOW) as channel:
        expected = (await client.generate([8] * 50, max_tokens=60, ignore_eos=True)).token_ids
        call = inference_pb2_grpc.InferenceStub(channel).Generate(_slow_request())
        await cluster.until(lambda: core.live == 1)
        streams = [client.generate([8] * 50, max_tokens=60, ignore_eos=True) for _ in range(8)]
        assert {tuple(answer.token_ids) for answer in await asyncio.gather(*streams)} == {tuple(expected)}
        await cluster.until(lambda: not core.live)
        # The workers have finished; only the output that the client has not read is buffered, in the gateway.
        assert list(gateway._subscriptions) == ["slow"]
        assert 0 < len(gateway._subscriptions["slow"].tokens) <= TOKENS
        await cluster.until(lambda: not any(view.load.pages_in_use for view in core.state.workers.values()))
        tokens = [token async for response in call for token in response.tokens]
        assert [token.index for token in tokens] == list(range(TOKENS))
        assert await call.code() is grpc.StatusCode.OK
    await cluster.until(lambda: not gateway._subscriptions)


def test_a_client_that_does_not_read_delays_no_other_client(play: Play) -> None:
    play(_never_reads)


async def _is_cut(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
    """Disconnected while its request still runs: the request has far more tokens than the network buffers."""
    core, gateway = cluster.router.driver.core, cluster.gateway.driver
    usual, gateway.write_timeout_s = gateway.write_timeout_s, 1.0
    try:
        async with grpc.aio.insecure_channel(cluster.address, SMALL_WINDOW) as channel:
            expected = (await client.generate([8] * 50, max_tokens=60, ignore_eos=True)).token_ids
            cancelled = core.explanations.cancelled
            call = inference_pb2_grpc.InferenceStub(channel).Generate(_slow_request())
            await cluster.until(lambda: core.live == 1)
            streams = [client.generate([8] * 50, max_tokens=60, ignore_eos=True) for _ in range(8)]
            assert {tuple(answer.token_ids) for answer in await asyncio.gather(*streams)} == {tuple(expected)}
            await cluster.until(lambda: not gateway._subscriptions and not core.live)
            await cluster.until(lambda: not any(view.load.pages_in_use for view in core.state.workers.values()))
            tokens = []
            with pytest.raises(grpc.aio.AioRpcError, match="has not read its stream for 1 s") as caught:
                async for response in call:
                    tokens += [token.index for token in response.tokens]
            assert caught.value.code() is grpc.StatusCode.CANCELLED
            assert tokens == list(range(len(tokens)))
            assert len(tokens) < TOKENS
            # No cancellation if all tokens were computed before the disconnect.
            assert core.explanations.cancelled - cancelled <= 1
    finally:
        gateway.write_timeout_s = usual


def test_a_client_that_reads_nothing_for_too_long_is_disconnected(play: Play) -> None:
    play(_is_cut)
