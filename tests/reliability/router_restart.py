"""What a restart of the router costs running streams, whose tokens never pass it.

A gateway, one prefill and two decode workers of the built-in model serve some streams. The router's process is killed
while all of them decode, and started again at once. The run alternates between sequences that the new router adopts and
sequences that are computed again (`claim_within_s = 0`). The clients do not resume: a stream that breaks off is an
error.

`gap`: the longest time between two tokens of a stream, from the kill until 2 s after the new router is ready. `calm`:
the same in the time after that, which shows what the machine itself does to a stream. `step`: the median of the time
between two tokens before the kill. `rest`: from the router's readiness to the stream's end.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing as mp
import os
import random
import signal
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import uvloop

import baton
from baton.builtin_model import CHECKPOINT
from baton.client.errors import BatonError
from baton.config.process_config import GatewayConfig, RouterConfig
from baton.harness.forked import forked
from baton.harness.gateway_process import serve_clients
from baton.harness.load import Load
from baton.harness.process_cluster import gateway_plan, plans
from baton.harness.report import Report, arguments, progress
from baton.harness.worker_process import work
from baton.router.build import start_router

WORKERS = {"prefill-0": "prefill", "decode-0": "decode", "decode-1": "decode"}
CONTEXT_TOKENS = 2048
CLAIM_WITHIN_S = 30.0
BEFORE_TOKENS = 20  # of each stream, before the router is killed
SETTLED_S = 2.0  # after the router's readiness: by then workers and gateway have registered, and requests are adopted


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int
    streams: int
    prompt_tokens: int
    output_tokens: int  # So many that no stream ends before the new router serves


def route(plan: RouterConfig, served: Any) -> None:
    """A router process until it is killed. It sends the time at which it is ready, by the machine's monotonic clock."""

    async def serve() -> None:
        router = await start_router(plan)
        gc.freeze()  # As its actor does
        served.send(time.monotonic())
        await router.task

    uvloop.run(serve())  # As Ray runs its actors


def start(target: Callable[[Any, Any], None], plan: RouterConfig | GatewayConfig) -> tuple[Any, Any]:
    """The process, which imports what it needs as a restarted actor does, and the pipe for its report."""
    ours, theirs = mp.Pipe(duplex=False)
    process = mp.get_context("spawn").Process(target=target, args=(plan, theirs), daemon=True)
    process.start()
    return process, ours


def free_ports(count: int) -> list[int]:
    """Ports that are free now; a restarted router listens on the same ones."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


async def until_joined(plan: RouterConfig, workers: Sequence[Any]) -> Any:
    """The cluster's state once all workers are registered and hold nothing.

    Raises `ChildProcessError` when a worker has ended instead.
    """
    async with asyncio.timeout(120):
        while True:
            ended = [f"{one.name} with code {one.exitcode}" for one in workers if one.exitcode is not None]
            if ended:
                raise ChildProcessError(f"Workers ended before they served: {', '.join(ended)}.")
            try:
                with baton.Admin(f"127.0.0.1:{plan.router.admin_port}") as admin:
                    cluster = await asyncio.to_thread(admin.cluster)
                joined = [worker for pool in cluster.pools for worker in pool.workers]
                if len(joined) == len(WORKERS) and not any(worker.pages_in_use for worker in joined):
                    return cluster
            except BatonError:
                pass
            await asyncio.sleep(0.05)


async def restart(
    plan: RouterConfig, address: str, old: Any, workers: Sequence[Any], size: Size, rng: random.Random
) -> dict[str, Any]:
    """Kill the router while all streams decode; `plan` is that of its successor, `address` the gateway's."""
    options = {"max_tokens": size.output_tokens, "ignore_eos": True}
    async with baton.AsyncClient(address, give_up_s=0.0) as client:
        load = Load(client, options, fresh_tokens=(size.prompt_tokens, size.prompt_tokens), rng=rng)
        async with load.clients(size.streams):
            while not all(len(one.shown_s) >= BEFORE_TOKENS for one in load.live.values()):
                await asyncio.sleep(0.001)
            killed_s = time.monotonic()
            os.kill(old.pid, signal.SIGKILL)
            fresh, served = await asyncio.to_thread(start, route, plan)
            ready = asyncio.create_task(asyncio.to_thread(served.recv))
        served_s = await ready  # Each client has sent one request: the block ends with the streams
    assert not load.wrong, load.wrong
    assert all(len(one.shown_s) == size.output_tokens for one in load.ended)
    cluster = await until_joined(plan, workers)
    settled_s = served_s + SETTLED_S
    return {
        "router": fresh,
        "gap_s": [_longest_gap_s(one.shown_s, killed_s, settled_s) for one in load.ended],
        "calm_s": [_longest_gap_s(one.shown_s, settled_s, one.shown_s[-1]) for one in load.ended],
        "step_s": [statistics.median(_gaps_s(one.shown_s[:BEFORE_TOKENS])) for one in load.ended],
        "rest_s": [one.shown_s[-1] - served_s for one in load.ended],
        "continued": cluster.continued_requests,
    }


def _gaps_s(times_s: Sequence[float]) -> list[float]:
    return [late - early for early, late in pairwise(times_s)]


def _longest_gap_s(times_s: Sequence[float], begin_s: float, end_s: float) -> float:
    """Of the gaps that end in this time; 0 if there are none."""
    return max((late - early for early, late in pairwise(times_s) if begin_s < late <= end_s), default=0.0)


async def measure(size: Size, seed: int, step: Callable[[str], None]) -> dict[str, float]:
    """Figures of all rounds."""
    gc.freeze()  # A collection in this process is no gap of a stream
    rng = random.Random(seed)
    admin_port, worker_port = free_ports(2)
    address = f"tcp://127.0.0.1:{worker_port}"
    router_config, worker_config = plans(
        CHECKPOINT, CONTEXT_TOKENS, 3000, policy="least_loaded", max_batch=64, lost_after_s=5.0
    )
    listening = router_config.router.changed(admin_port=admin_port, admin_http_port=0)
    router_config = replace(router_config, router=listening, worker_port=worker_port)
    router, _ = start(route, router_config)
    gateway, served = start(serve_clients, gateway_plan(router_config, worker_config, "gateway-0", address))
    workers: list[Any] = []
    found: dict[str, list[Any]] = {"continued": [], "computed_again": []}
    try:
        for name, role in WORKERS.items():
            plan = replace(worker_config, name=name, role=role, router_address=address)
            workers.append(forked(work, plan, name=name))
            workers[-1].start()
        client_address = await asyncio.to_thread(served.recv)
        await until_joined(router_config, workers)
        for _ in range(size.rounds):
            for kind, seconds in (("continued", CLAIM_WITHIN_S), ("computed_again", 0.0)):
                step(kind)
                resumed = replace(router_config, router=router_config.router.changed(claim_within_s=seconds))
                seen = await restart(resumed, client_address, router, workers, size, rng)
                router = seen.pop("router")
                found[kind].append(seen)
    finally:
        for process in (gateway, router, *workers):
            process.kill()
            process.join()
    return figures_of(found)


def figures_of(found: dict[str, list[Any]]) -> dict[str, float]:
    """Medians and maxima over all streams of either kind."""
    figures: dict[str, float] = {}
    for kind, rounds in found.items():
        for name in ("gap_s", "calm_s", "step_s", "rest_s"):
            seconds = [one for seen in rounds for one in seen[name]]
            figures |= {f"{name}_p50_{kind}": statistics.median(seconds), f"{name}_max_{kind}": max(seconds)}
    continued = found["continued"]
    return {
        "gap_ms_max_router_killed": 1000 * figures["gap_s_max_continued"],
        "gap_steps_max_router_killed": figures["gap_s_max_continued"] / figures["step_s_p50_continued"],
        "gap_ms_max_calm": 1000 * figures["calm_s_max_continued"],
        "rest_ratio": figures["rest_s_p50_computed_again"] / figures["rest_s_p50_continued"],
        "streams": float(sum(len(seen["gap_s"]) for seen in continued)),
        "streams_continued": float(sum(seen["continued"] for seen in continued)),
        **figures,
    }


def main() -> None:
    parser = arguments(__doc__, "python -m tests.reliability.router_restart --rounds 4")
    parser.add_argument("--rounds", type=int, help="restarts of each kind")
    parser.add_argument("--streams", type=int)
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--output-tokens", type=int)
    options = parser.parse_args()
    default = options.pick(Size(2, 64, 64, 800), Size(1, 16, 64, 1600), Size(1, 2, 64, 1900))
    size = Size(
        options.rounds or default.rounds,
        options.streams or default.streams,
        options.prompt_tokens or default.prompt_tokens,
        options.output_tokens or default.output_tokens,
    )
    report = Report("router_restart", setting=asdict(size))
    with progress(2 * size.rounds) as step:
        report.figures = asyncio.run(measure(size, options.seed, step))
    report.publish(options)


if __name__ == "__main__":
    main()
