"""Both sides of the router benchmark: each starts its router and its workers, and ends them again."""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing as mp
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil
import zmq

from baton import wire
from benchmarks.mock_baton import ROLES, Left, mock_baton_process
from benchmarks.mock_http import mock_http_process
from benchmarks.stream_clients import GrpcClient, HttpClient, StreamClient, WorkerClient
from builtin_model import CHECKPOINT
from cluster.messages import Welcome
from cluster.plan import RouterPlan
from cluster.worker import RoleName

START_S = 60.0


@dataclass(eq=False)
class Child:
    """A process that is spoken to over a pipe and ends when told so."""

    pipe: Connection
    process: Any

    def hear(self) -> Any:
        """The next thing it says."""
        if not self.pipe.poll(START_S):
            raise RuntimeError(f"{self.process.name} has said nothing for {START_S:g} s.")
        return self.pipe.recv()

    def pace(self, step_s: float) -> Left:
        """Set a worker's step; returns when each token left since the last call."""
        self.pipe.send(step_s)
        left: Left = self.hear()
        return left

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def start(stack: ExitStack, target: Callable[..., None], *args: Any) -> Child:
    """Run `target(*args, pipe)` in a process of its own until the stack closes."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*args, theirs), name=target.__name__, daemon=True)
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is ours to answer
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
    """A router with its workers, and how to read through it and past it."""

    name: str  # what its figures end with
    router: psutil.Process
    routed: Callable[[int, bool], StreamClient]  # for so many streams at once; paced or flat out
    routed_worker: Child
    direct: Callable[[int, bool], StreamClient]
    direct_worker: Child


def router_process(pipe: Connection) -> None:
    """A real router; says where it listens and ends when the pipe closes."""
    from router.assembly import start_router

    async def serve() -> None:
        plan = RouterPlan(str(CHECKPOINT), "mock", "float32", 4096, "127.0.0.1", 0, "127.0.0.1", 4096, 60.0)
        running = await start_router(plan)
        told = asyncio.Event()
        asyncio.get_running_loop().add_reader(pipe.fileno(), told.set)
        pipe.send((running.worker_address, running.port))
        await told.wait()
        asyncio.get_running_loop().remove_reader(pipe.fileno())
        await running.stop(0.0)

    asyncio.run(serve())


@contextmanager
def baton_side() -> Iterator[Side]:
    """Baton's router with a prefill and a decode worker, and a second pair that is read without a router."""
    with ExitStack() as stack:
        router = start(stack, router_process)
        worker_address, port = router.hear()
        routed_worker = start(stack, mock_baton_process, worker_address)
        routed_worker.hear()
        context = zmq.Context()
        stack.callback(context.destroy, linger=0)
        link: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        direct_port = link.bind_to_random_port("tcp://127.0.0.1")
        direct_worker = start(stack, mock_baton_process, f"tcp://127.0.0.1:{direct_port}")
        welcome, greeted = wire.encode_to_worker([Welcome("direct", 0.5, "1")]), set[bytes]()
        while len(greeted) < len(ROLES):
            worker = link.recv_multipart()[0]
            if worker not in greeted:
                greeted.add(worker)
                link.send_multipart([worker, welcome])
        direct_worker.hear()
        decode = RoleName.DECODE.value.encode()
        yield Side(
            "",
            psutil.Process(router.process.pid),
            lambda streams, paced: GrpcClient(port),
            routed_worker,
            lambda streams, paced: WorkerClient(link, decode),
            direct_worker,
        )


def find_sglang(path: str | None) -> list[str] | None:
    """The command that launches sglang-router: `path`, or what is installed beside this interpreter."""
    if path is not None:
        if shutil.which(path) is None:
            raise SystemExit(f"--sglang {path} is no program; give the path of an installed sglang-router.")
        return [path, "launch"]
    if importlib.util.find_spec("sglang_router") is None:
        return None
    return [sys.executable, "-m", "sglang_router", "launch"]


@contextmanager
def sglang_side(command: list[str]) -> Iterator[Side]:
    """sglang-router with a prefill and a decode server, its settings left as they come."""
    with ExitStack() as stack:
        servers = start(stack, mock_http_process)
        prefill_port, decode_port = servers.hear()
        port, metrics_port = _free_ports(2)
        arguments = ["--pd-disaggregation", "--prefill", f"http://127.0.0.1:{prefill_port}", "8998"]
        arguments += ["--decode", f"http://127.0.0.1:{decode_port}", "--host", "127.0.0.1", "--port", str(port)]
        arguments += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port), "--log-level", "error"]
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, start_new_session=True)
        stack.callback(_end, process)
        _await_ready(f"http://127.0.0.1:{port}/readiness", process)
        router = psutil.Process(process.pid)
        yield Side(
            "_sglang",
            router,
            lambda streams, paced: HttpClient(port, streams, paced),
            servers,
            lambda streams, paced: HttpClient(decode_port, streams, paced),
            servers,
        )


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _await_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """It has no way to say that it serves, so it is asked until it does."""
    deadline = time.monotonic() + START_S
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"sglang-router ended at once with code {process.returncode}.")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError as error:  # not listening yet, or 503
            if time.monotonic() > deadline:
                raise RuntimeError(f"sglang-router is not ready after {START_S:g} s: {error}.") from None
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It is a group of its own, so that Ctrl-C reaches it only from here; nothing of it is worth a graceful end."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
