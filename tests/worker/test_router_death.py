"""A decode worker in a process of its own: what a gateway receives while the worker's router is dead."""

from __future__ import annotations

import asyncio
import multiprocessing as mp
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from baton.builtin_model import CHECKPOINT
from baton.harness.process_cluster import plans
from baton.harness.worker_process import work
from baton.links.frame_server import FrameServer
from baton.protocol.codec import FROM_WORKER_TO_GATEWAY, TO_ROUTER
from baton.protocol.gateway_messages import AttachStreams, LinkUp, StepOutput, StreamPosition
from baton.protocol.messages import Prefill, Work
from baton.protocol.request import Request, SamplingParams
from baton.protocol.session_messages import GatewayJoined, Register, RegisterAck

NAMES, TOKENS = [f"r{number}" for number in range(8)], 1000


@dataclass(eq=False)
class Ends:
    """A router and a gateway that only take part in the protocol."""

    router: FrameServer
    gateway: FrameServer
    registered: list[Register] = field(default_factory=list)
    indexes: dict[str, list[int]] = field(default_factory=dict)
    outputs: int = 0  # Messages with tokens
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        self.router.start(self.on_router)
        self.gateway.start(self.on_gateway)

    def on_router(self, worker: str, incarnation: str, batch: list[Any]) -> None:
        for message in batch:
            if isinstance(message, Register):
                self.registered.append(message)
                joined = GatewayJoined("g", "1", self.gateway.address)
                self.router.send(worker, [RegisterAck("router", 0.5, incarnation), joined])
        self.changed.set()

    def on_gateway(self, worker: str, incarnation: str, batch: list[Any]) -> None:
        for message in batch:
            if isinstance(message, LinkUp):
                positions = [StreamPosition(name, len(self.indexes.get(name, ()))) for name in NAMES]
                self.gateway.send(worker, [AttachStreams(tuple(positions))])
            elif isinstance(message, StepOutput):
                self.outputs += 1
                for token in message.tokens:
                    self.indexes.setdefault(token.request_id, []).append(token.index)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(120):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


async def _play(worker: Callable[[str], Any]) -> Ends:
    """Kill the router while the worker decodes, and start another one."""
    ends = Ends(FrameServer("tcp://127.0.0.1:*", TO_ROUTER), FrameServer("tcp://127.0.0.1:*", FROM_WORKER_TO_GATEWAY))
    ends.start()
    process = worker(ends.router.address)
    try:
        await ends.until(lambda: bool(ends.registered))
        sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
        for number, name in enumerate(NAMES):
            order = Prefill(name, Work(Request(name, (5, 6, 7 + number), sampling)), "g", False, 0)
            assert ends.router.send("mixed-0", [order])
        await ends.until(lambda: ends.outputs > 100)
        address, before = ends.router.address, ends.outputs
        ends.router.close()
        await ends.until(lambda: ends.outputs > before + 100)
        ends.router = FrameServer(address, TO_ROUTER)
        ends.router.start(ends.on_router)
        await ends.until(lambda: len(ends.registered) > 1)
        await ends.until(lambda: sum(map(len, ends.indexes.values())) >= len(NAMES) * TOKENS)
        return ends
    finally:
        process.kill()
        process.join()
        ends.router.close()
        ends.gateway.close()


def _start(address: str) -> Any:
    plan = replace(plans(CHECKPOINT, 1024, 600)[1], name="mixed-0", role="mixed", router_address=address)
    process = mp.get_context("spawn").Process(target=work, args=(plan,), daemon=True)
    process.start()
    return process


def test_a_gateway_gets_every_token_once_while_the_router_dies_and_comes_back() -> None:
    ends = asyncio.run(_play(_start))
    assert ends.indexes == {name: list(range(TOKENS)) for name in NAMES}
    assert [len(register.held) for register in ends.registered] == [0, len(NAMES)]
    assert ends.registered[0].info.incarnation != ends.registered[1].info.incarnation
