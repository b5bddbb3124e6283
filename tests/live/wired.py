"""A cluster behind network cables that scenarios cut: workers, and one of two gateways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import baton
from baton.builtin_model import CHECKPOINT
from baton.client.stream import AsyncTokenStream
from baton.harness.process_cluster import ProcessCluster, plans
from baton.router.core.breaker import Breaker
from tests.reliability.cables import DEVICE, Cables, enter
from tests.reliability.leaks import check_pages

OPTIONS: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "temperature": 0.8}
ENVIRONMENT = {"UCX_TLS": "tcp", "UCX_NET_DEVICES": DEVICE}  # shared memory needs no cable
FAR_GATEWAY = "gateway-1"
POOLS = {"prefill": 1, "decode": 2}
WRITE_STALL_S = 2.0
TIMEOUT_S = 150.0


@dataclass(eq=False)
class Wired:
    """A cluster of processes, each worker and one of two gateways behind a cable of its own."""

    cables: Cables
    cluster: ProcessCluster
    runner: asyncio.Runner
    far_address: str = ""  # Where the gateway behind a cable serves

    @property
    def worker_port(self) -> int:
        return int(self.cluster.router.worker_address.rsplit(":", 1)[1])

    @property
    def gateway_port(self) -> int:
        """The gateway's, for workers."""
        return int(self.cluster.gateway.addresses.worker.rsplit(":", 1)[1])

    def play(self, scenario: Any, *arguments: Any) -> None:
        """Run a scenario, then check that no page is held and every worker is registered."""
        self.runner.run(asyncio.wait_for(self._play(scenario, *arguments), TIMEOUT_S))

    async def _play(self, scenario: Any, *arguments: Any) -> None:
        core = self.cluster.router.driver.core
        async with baton.AsyncClient(self.cluster.address) as client:
            try:
                await scenario(self, client, *arguments)
            finally:
                for name in (*(name for name, _ in self.cluster.names), FAR_GATEWAY):
                    self.cables.heal(name)
        await self.cluster.until(lambda: len(core.state.workers) == len(self.cluster.names))
        await self.cluster.until(lambda: not core.live)
        await self.cluster.until(lambda: not any(view.load.pages_in_use for view in core.state.workers.values()))
        check = await check_pages(self.cluster.admin_address, 1.0)
        assert check.clean, check
        assert len(core.membership.transfers) == 0
        core.membership.breaker = Breaker()  # these tests are no reason to distrust a worker


@contextmanager
def wire() -> Iterator[Wired]:
    """The cluster, while the block runs."""
    with Cables() as cables, asyncio.Runner() as runner:
        router_config, worker_config = plans(CHECKPOINT, 4096, 1200, policy="least_loaded", chunk_tokens=64)
        router_config = replace(
            router_config, worker_host=cables.address, router=router_config.router.changed(lost_after_s=2.0)
        )
        worker_config = replace(worker_config, engine=worker_config.engine.changed(write_stall_s=WRITE_STALL_S))
        cluster = ProcessCluster(router_config, worker_config, POOLS)
        behind = [*(name for name, _ in cluster.names), FAR_GATEWAY]
        cluster.first = {name: partial(enter, cables.namespace(name)) for name in behind}
        cluster.environment = ENVIRONMENT
        for name in behind:
            cables.plug(name)
        runner.run(cluster.__aenter__())
        try:
            far = runner.run(cluster.spawn_gateway(FAR_GATEWAY, host=cables.address_of(FAR_GATEWAY)))
            yield Wired(cables, cluster, runner, far)
        finally:
            runner.run(cluster.__aexit__())


def new_streams(client: baton.AsyncClient, mark: int, max_tokens: int = 200) -> list[AsyncTokenStream]:
    """Streams with new prompts, so that no page is cached and all pages are transferred."""
    prompts = [[5 + index, 10 + mark] * (150 + index) for index in range(4)]
    options = {**OPTIONS, "max_tokens": max_tokens}
    return [client.stream(prompt, seed=index, **options) for index, prompt in enumerate(prompts)]


async def check(client: baton.AsyncClient, answers: list[baton.Answer], mark: int) -> None:
    """The answers are those of an undisturbed cluster, each index once."""
    assert len({answer.output_tokens for answer in answers}) == 1
    await check_tokens(client, [answer.tokens for answer in answers], mark)


async def check_tokens(client: baton.AsyncClient, received: Sequence[Sequence[baton.Token]], mark: int) -> None:
    """The first tokens of each stream are those of an undisturbed cluster, each index once."""
    streams = new_streams(client, mark, max(map(len, received)))
    undisturbed = await asyncio.gather(*(stream.answer() for stream in streams))
    for tokens, answer in zip(received, undisturbed, strict=True):
        assert [token.id for token in tokens] == answer.token_ids[: len(tokens)]
        assert [token.index for token in tokens] == list(range(len(tokens)))


async def tokens_within(seconds: float, client: baton.AsyncClient, mark: int, at_most: int) -> int:
    """How many tokens each of the streams receives in this time on this machine."""
    begun_s = time.monotonic()
    await asyncio.gather(*(stream.answer() for stream in new_streams(client, mark, 100)))
    return min(at_most, int(100 * seconds / (time.monotonic() - begun_s)))


async def streams_decoding(
    wired: Wired, client: baton.AsyncClient, mark: int, max_tokens: int = 200
) -> tuple[str, list[AsyncTokenStream], list[baton.Token]]:
    """Starts streams and waits until all of them decode: the first one's decode worker, streams and first tokens."""
    core = wired.cluster.router.driver.core
    streams = new_streams(client, mark, max_tokens)
    first = await asyncio.gather(*(anext(stream) for stream in streams))
    await wired.cluster.until(lambda: all(record.decoding for record in core.requests.live.values()))
    return next(iter(core.requests.live.values())).decode_worker, streams, first


async def all_decoding(
    wired: Wired, client: baton.AsyncClient, mark: int, max_tokens: int = 200
) -> tuple[str, asyncio.Future[list[baton.Answer]]]:
    """`streams_decoding`, with the answers to come in place of the streams."""
    victim, streams, _ = await streams_decoding(wired, client, mark, max_tokens)
    return victim, asyncio.gather(*(stream.answer() for stream in streams))


def incarnations(wired: Wired) -> dict[str, str]:
    return {name: view.info.incarnation for name, view in wired.cluster.router.driver.core.state.workers.items()}
