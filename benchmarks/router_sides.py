"""A side of the router benchmark, a router with mock workers in separate processes, and Baton's side."""

from __future__ import annotations

import asyncio
import multiprocessing as mp
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil
import zmq

from baton.builtin_model import CHECKPOINT
from baton.harness.process_cluster import plans
from baton.protocol import codec
from baton.protocol.messages import RegisterAck
from baton.protocol.worker import RoleName
from benchmarks.mock_baton import ROLES, Left, mock_baton_process
from benchmarks.stream_clients import GrpcClient, StreamClient, WorkerClient

START_S = 60.0


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
    router: psutil.Process
    routed: Callable[[int, bool], StreamClient]  # (concurrent streams, paced) → client
    routed_worker: Child
    direct: Callable[[int, bool], StreamClient]
    direct_worker: Child


def router_process(pipe: Connection) -> None:
    """A real router; sends (worker address, port) over the pipe and ends when the pipe closes."""
    from baton.router.build import start_router

    async def serve() -> None:
        running = await start_router(plans(CHECKPOINT, 4096, 1)[0])
        closed = asyncio.Event()
        asyncio.get_running_loop().add_reader(pipe.fileno(), closed.set)
        pipe.send((running.worker_address, running.port))
        await closed.wait()
        asyncio.get_running_loop().remove_reader(pipe.fileno())
        await running.stop(0.0)

    asyncio.run(serve())


@contextmanager
def baton_side() -> Iterator[Side]:
    """Baton's router with mock prefill and decode workers, and a second pair that is read without a router."""
    with ExitStack() as stack:
        router = start(stack, router_process)
        worker_address, port = router.receive()
        routed_worker = start(stack, mock_baton_process, worker_address)
        routed_worker.receive()
        context = zmq.Context()
        stack.callback(context.destroy, linger=0)
        link: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        direct_port = link.bind_to_random_port("tcp://127.0.0.1")
        direct_worker = start(stack, mock_baton_process, f"tcp://127.0.0.1:{direct_port}")
        acknowledgement, registered = codec.encode_to_worker([RegisterAck("direct", 0.5, "1")]), set[bytes]()
        while len(registered) < len(ROLES):
            if not link.poll(int(1000 * START_S)):
                raise RuntimeError(f"{len(registered)} of {len(ROLES)} mock workers registered within {START_S:g} s.")
            worker = link.recv_multipart()[0]
            if worker not in registered:
                registered.add(worker)
                link.send_multipart([worker, acknowledgement])
        direct_worker.receive()
        decode = RoleName.DECODE.value.encode()
        yield Side(
            "",
            psutil.Process(router.process.pid),
            lambda streams, paced: GrpcClient(port),
            routed_worker,
            lambda streams, paced: WorkerClient(link, decode),
            direct_worker,
        )
