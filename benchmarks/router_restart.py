"""What a restart of the router costs the streams that run: continued where they run, and prefilled again.

One prefill and two decode workers of the built-in model serve some streams; the router's process is killed while all of
them decode, and started again at once. The same run does it with sequences that are continued and with such that are
computed again (`claim_within_s = 0`), in turn.

`gap`: the longest time between two tokens of a stream, most of which is the start of a process. `first_token`: from
when the router hears of the resumed request. `rest`: from when the router serves to the stream's end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import signal
import socket
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import baton
from baton.errors import BatonError
from benchmarks.process_cluster import plans, work
from builtin_model import CHECKPOINT
from cluster.plan import RouterPlan
from router.assembly import start_router

WORKERS = {"prefill-0": "prefill", "decode-0": "decode", "decode-1": "decode"}
CONTEXT_TOKENS = 2048
CLAIM_WITHIN_S = 30.0


def route(plan: RouterPlan, served: Any) -> None:
    """A router process, until it is killed; it tells when it began to serve (the clock is the machine's)."""

    async def serve() -> None:
        router = await start_router(plan)
        served.send(time.monotonic())
        await router.task

    asyncio.run(serve())


def start(plan: RouterPlan) -> tuple[Any, Any]:
    """The process, and where it tells that it serves."""
    ours, theirs = mp.Pipe(duplex=False)
    process = mp.get_context("spawn").Process(target=route, args=(plan, theirs), daemon=True)
    process.start()
    return process, ours


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now; a router that is started again takes the same ones."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


async def until_joined(plan: RouterPlan) -> Any:
    """The cluster's state once every worker is there and nobody holds anything."""
    async with asyncio.timeout(120):
        while True:
            try:
                with baton.Admin(f"127.0.0.1:{plan.admin_port}") as admin:
                    cluster = await asyncio.to_thread(admin.cluster)
                workers = [worker for pool in cluster.pools for worker in pool.workers]
                if len(workers) == len(WORKERS) and not any(worker.pages_held for worker in workers):
                    return cluster
            except BatonError:
                pass
            await asyncio.sleep(0.05)


async def restart(plan: RouterPlan, old: Any, streams: int, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    """Kill the router while all streams decode; `plan` is its successor's."""
    waits: list[tuple[float, float]] = []  # ends of each stream's longest gap
    ends: list[float] = []
    firsts: list[float] = []  # from the router's hearing of the rest to its first token
    begun = [asyncio.Event() for _ in range(streams)]

    async def read(index: int, client: baton.AsyncClient) -> None:
        prompt = [3 + (index * 31 + at * 7) % 200 for at in range(prompt_tokens)]
        stream = client.stream(prompt, max_tokens=output_tokens, ignore_eos=True)
        last, longest, count = 0.0, (0.0, 0.0), 0
        async for _ in stream:
            now, count = time.monotonic(), count + 1
            if count > 20 and now - last > longest[1] - longest[0]:
                longest = (last, now)
            last = now
            if count == 20:
                begun[index].set()
        assert count == output_tokens
        firsts.append((await stream.answer()).ttft_s)
        waits.append(longest)
        ends.append(last)

    async with baton.AsyncClient(f"127.0.0.1:{plan.port}") as client:
        readers = [asyncio.create_task(read(index, client)) for index in range(streams)]
        await asyncio.gather(*(event.wait() for event in begun))
        os.kill(old.pid, signal.SIGKILL)
        fresh, served = start(plan)
        served_s = await asyncio.to_thread(served.recv)
        await asyncio.gather(*readers)
    cluster = await until_joined(plan)
    return {
        "router": fresh,
        "gaps_s": [end_s - begun_s for begun_s, end_s in waits],
        "rest_s": [end_s - served_s for end_s in ends],
        "firsts_s": firsts,
        "continued": cluster.continued_requests,
    }


async def measure(rounds: int, streams: int, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    port, admin_port, worker_port = free_ports(3)
    router_plan, worker_plan = plans(
        CHECKPOINT, CONTEXT_TOKENS, 1200, policy="least_loaded", max_batch=32, lost_after_s=5.0
    )
    router_plan = replace(router_plan, port=port, admin_port=admin_port, worker_port=worker_port)
    router, _ = start(router_plan)
    workers = []
    found: dict[str, list[Any]] = {"continued": [], "computed again": []}
    try:
        for name, role in WORKERS.items():
            plan = replace(worker_plan, name=name, role=role, router_address=f"tcp://127.0.0.1:{worker_port}")
            workers.append(mp.get_context("spawn").Process(target=work, args=(plan,), daemon=True))
            workers[-1].start()
        await until_joined(router_plan)
        for _ in range(rounds):
            for kind, seconds in (("continued", CLAIM_WITHIN_S), ("computed again", 0.0)):
                resumed = replace(router_plan, claim_within_s=seconds)
                seen = await restart(resumed, router, streams, prompt_tokens, output_tokens)
                router = seen.pop("router")
                found[kind].append(seen)
    finally:
        for process in (router, *workers):
            process.kill()
            process.join()
    result: dict[str, Any] = {}
    for kind, rounds_of in found.items():
        gaps = [gap for seen in rounds_of for gap in seen["gaps_s"]]
        rest = [one for seen in rounds_of for one in seen["rest_s"]]
        firsts = [one for seen in rounds_of for one in seen["firsts_s"]]
        result[kind] = {
            "streams": len(gaps),
            "continued": sum(seen["continued"] for seen in rounds_of),
            "gap_p50_s": statistics.median(gaps),
            "gap_max_s": max(gaps),
            "first_token_p50_s": statistics.median(firsts),
            "first_token_max_s": max(firsts),
            "rest_p50_s": statistics.median(rest),
            "rest_max_s": max(rest),
        }
    again, continued = (result[kind]["rest_p50_s"] for kind in ("computed again", "continued"))
    result["rest_ratio"] = again / continued
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=1000)
    parser.add_argument("--output-tokens", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = asyncio.run(measure(options.rounds, options.streams, options.prompt_tokens, options.output_tokens))
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
