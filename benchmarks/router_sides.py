"""A side of the router benchmark, a router with mock workers in separate processes, and Baton's side."""

from __future__ import annotations

import asyncio
import multiprocessing as mp
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import psutil
import uvloop
import zmq

from baton.builtin_model import CHECKPOINT
from baton.harness.process_cluster import gateway_plan, plans
from baton.protocol.worker import RoleName
from benchmarks.mock_baton import ROLES, Left, mock_baton_process
from benchmarks.stream_clients import CompletionClient, GrpcClient, StreamClient, WorkerClient, attach

START_S = 60.0
CONTEXT_TOKENS = 16_384


@dataclass(eq=False)
class Child:
    """A child process that is controlled over a pipe."""

    pipe: Connection
    process: Any

    def receive(self) -> Any:
        """The next object from the pipe; raises `RuntimeError` when none arrives within `START_S`."""
        if not self.pipe.poll(START_S):
            raise RuntimeError(f"{self.process.name} has sent nothing for {START_S:g} s.")
        return self.pipe.recv()

    def pace(self, step_s: float) -> Left:
        """Set a worker's step; returns the time at which each token left since the last call."""
        self.pipe.send(step_s)
        left: Left = self.receive()
        return left

    def stop(self) -> None:
        """Close the pipe, on which the process ends; kill it if it does not."""
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def start(stack: ExitStack, target: Callable[..., None], *args: Any) -> Child:
    """Run `target(*args, pipe)` in a child process until the stack closes."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*args, theirs), name=target.__name__, daemon=True)
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Inherited: only this process handles Ctrl-C.
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, previous)
    theirs.close()
    child = Child(ours, process)
    stack.callback(child.stop)
    return child


@dataclass(eq=False)
class Side:
    """A router with its workers, and clients that read through the router and directly from a worker."""

    name: str  # Suffix of its figures.
    processes: dict[str, list[psutil.Process]]  # By what they are: the "router", and Baton's "gateway"
    routed: Callable[[int, bool], StreamClient]  # (concurrent streams, paced) → client
    routed_worker: Child
    direct: Callable[[int, bool], StreamClient]
    direct_worker: Child


def router_process(pipe: Connection) -> None:
    """A real router; sends its address for workers and gateways over the pipe and ends when the pipe closes."""
    from baton.router.build import start_router

    async def serve() -> None:
        running = await start_router(plans(CHECKPOINT, CONTEXT_TOKENS, 1)[0])
        pipe.send(running.worker_address)
        await _until_closed(pipe)
        await running.stop(0.0)

    uvloop.run(serve())  # As Ray runs its actors


def gateway_process(router_address: str, name: str, port: int, pipe: Connection) -> None:
    """A real gateway; sends its ports over the pipe once it is registered, and ends when the pipe closes."""
    from baton.gateway.build import start_gateway

    async def serve() -> None:
        plan = gateway_plan(*plans(CHECKPOINT, CONTEXT_TOKENS, 1), name, router_address)
        running = await start_gateway(replace(plan, gateway=plan.gateway.changed(port=port)))
        await running.registered()
        pipe.send((running.port, running.http_port))
        await _until_closed(pipe)
        await running.stop(0.0)

    uvloop.run(serve())  # As Ray runs its actors


async def _until_closed(pipe: Connection) -> None:
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), closed.set)
    await closed.wait()
    asyncio.get_running_loop().remove_reader(pipe.fileno())


@contextmanager
def baton_side(name: str = "", gateways: int = 1, cores: Sequence[int] = (), http: bool = False) -> Iterator[Side]:
    """Baton's router and gateways with mock prefill and decode workers, and a second pair that is read without them.

    With `cores` each gateway runs on a core of its own, in this order. With `http` clients use the OpenAI API.
    """
    with ExitStack() as stack:
        router = start(stack, router_process)
        router_address = router.receive()
        fronts, port, http_port = [], 0, 0
        for index in range(gateways):
            fronts.append(start(stack, gateway_process, router_address, f"gateway-{index}", port))
            port, http_port = fronts[-1].receive()
            if cores:
                psutil.Process(fronts[-1].process.pid).cpu_affinity([cores[index % len(cores)]])
        routed_worker = start(stack, mock_baton_process, router_address)
        routed_worker.receive()
        context = zmq.Context()
        stack.callback(context.destroy, linger=0)
        orders: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        tokens: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        orders_port = orders.bind_to_random_port("tcp://127.0.0.1")
        tokens_port = tokens.bind_to_random_port("tcp://127.0.0.1")
        direct_worker = start(stack, mock_baton_process, f"tcp://127.0.0.1:{orders_port}")
        attach(orders, tokens, f"tcp://127.0.0.1:{tokens_port}", len(ROLES), START_S)
        direct_worker.receive()
        decode = RoleName.DECODE.value.encode()
        yield Side(
            name,
            {
                "gateway": [psutil.Process(front.process.pid) for front in fronts],
                "router": [psutil.Process(router.process.pid)],
            },
            lambda streams, paced: CompletionClient(http_port, streams, paced) if http else GrpcClient(port),
            routed_worker,
            lambda streams, paced: WorkerClient(orders, tokens, decode),
            direct_worker,
        )
