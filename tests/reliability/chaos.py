"""Faults at random against a live cluster under steady streams whose answers are known.

A Ray of its own with router, 2 prefill and 3 decode workers of the built-in model. Workers are killed and stopped, the
router is killed, clients leave by the dozen, operators drain, rebalance and migrate. As root, workers run on two Ray
nodes behind network cables, which are cut, too. Every answer must be the one an
undisturbed cluster gave, each index once. At the end nobody may hold a page.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import baton
from baton.builtin_model import CHECKPOINT
from baton.client.errors import BatonError
from baton.config.schema import parse_config
from baton.deploy.cluster import resolve_here
from baton.deploy.launcher import Started, connected, router_pid, start_cluster
from baton.deploy.local_ray import start_local_ray
from baton.harness.report import Goal, Report, arguments, progress
from tests.reliability.cables import DEVICE, Cables, why_not
from tests.reliability.wired_ray import wired_ray

GOALS = {
    name: Goal(0, at_most=True)
    for name in ("tokens_wrong", "tokens_missing", "tokens_repeated", "requests_failed_unexplained", "pages_leaked")
}
POOLS = {"prefill": 2, "decode": 3}
NODES, CPUS = ("left", "right"), (2, 3)
OPTIONS: dict[str, Any] = {"max_tokens": 120, "ignore_eos": True, "temperature": 0.7}
PROMPTS = [[5 + index] * (40 + 60 * index) for index in range(6)]
STREAMS = 8
CALM_S = 4.0  # between faults, on average: from half of it to one and a half
STOPPED_S = (0.5, 6.0)  # how long a stopped worker stays so, or a cable cut
SETTLE_S = 60.0
BACK_OFF_S = 0.5  # of a client that was refused


@dataclass(eq=False)
class Tally:
    """What became of the streams."""

    done: int = 0
    left: int = 0  # clients that went away
    wrong: int = 0
    missing: int = 0
    repeated: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # explained by a fault: by error class
    failed: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)
    last_done_s: float = 0.0

    def judge(self, answer: baton.Answer, expected: list[int]) -> None:
        indices = [token.index for token in answer.tokens]
        self.repeated += len(indices) - len(set(indices))
        self.missing += len(expected) - len(set(indices))
        self.wrong += sum(one != other for one, other in zip(answer.token_ids, expected, strict=False))
        self.done += 1
        self.last_done_s = time.monotonic()


@dataclass(eq=False)
class Chaos:
    """One run against a started cluster."""

    started: Started
    rng: random.Random
    tally: Tally = field(default_factory=Tally)
    expected: list[list[int]] = field(default_factory=list)
    cables: Cables | None = None
    calm_s: float = CALM_S
    leaving: asyncio.Event = field(default_factory=asyncio.Event)  # clients go away while it is set
    stopping: bool = False

    async def serve(self, client: baton.AsyncClient) -> None:
        """Stream after stream, as one client does it."""
        while not self.stopping:
            index = self.rng.randrange(len(PROMPTS))
            stream = client.stream(PROMPTS[index], seed=index, **OPTIONS)
            try:
                async for _ in stream:
                    if self.leaving.is_set() and self.rng.random() < 0.3:
                        stream.cancel()
                        self.tally.left += 1
                        break
                else:
                    self.tally.judge(await stream.answer(), self.expected[index])
            except BatonError as error:
                # The one end a fault makes impossible to avoid: a request that met the death of its worker twice.
                name = type(error).__name__
                if name == "WorkerLost" or error.retryable:
                    self.tally.refused[name] += 1
                    await asyncio.sleep(BACK_OFF_S)
                else:
                    self.tally.failed.append(f"{name}: {error.message}")

    async def run(self, seconds: float, most_faults: float = math.inf) -> None:
        """Undisturbed answers first, then faults one after the other, until the time is over or there were so many."""
        async with baton.AsyncClient(self.started.address) as client:
            for index, prompt in enumerate(PROMPTS):
                self.expected.append((await client.generate(prompt, seed=index, **OPTIONS)).token_ids)
            tasks = [asyncio.create_task(self.serve(client)) for _ in range(STREAMS)]
            faults = [
                self.kill_worker,
                self.stop_worker,
                self.kill_router,
                self.abort_storm,
                self.operate,
                self.operate,
            ]
            if self.cables is not None:
                faults += [self.cut_cable, self.cut_cable]
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s and self.tally.faults.total() < most_faults:
                await asyncio.sleep(self.calm_s * self.rng.uniform(0.5, 1.5))
                fault: Callable[[], Awaitable[str]] = self.rng.choice(faults)
                begun_s = time.monotonic()
                with contextlib.suppress(BatonError):  # the router may be away
                    self.tally.faults[await fault()] += 1
                await self._until_an_answer(begun_s)
            self.stopping = True
            await asyncio.gather(*tasks)

    async def _until_an_answer(self, begun_s: float) -> None:
        """The time from a fault to the next complete answer."""
        while self.tally.last_done_s < begun_s and time.monotonic() < begun_s + SETTLE_S:
            await asyncio.sleep(0.02)
        self.tally.recoveries_s.append(time.monotonic() - begun_s)

    def workers(self) -> dict[str, Any]:
        with baton.Admin(self.started.admin_address) as admin:
            return {worker.name: worker for pool in admin.cluster().pools for worker in pool.workers}

    def _victim(self) -> Any:
        workers = self.workers()
        if not workers:
            raise BatonError("No worker is there to be hurt.")
        return workers[self.rng.choice(sorted(workers))]

    async def kill_worker(self) -> str:
        victim = await asyncio.to_thread(self._victim)
        os.kill(victim.pid, signal.SIGKILL)
        return f"kill {victim.name.split('-')[0]}"

    async def stop_worker(self) -> str:
        victim = await asyncio.to_thread(self._victim)
        os.kill(victim.pid, signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(*STOPPED_S))
        with contextlib.suppress(ProcessLookupError):  # its process was ended meanwhile
            os.kill(victim.pid, signal.SIGCONT)
        return f"stop {victim.name.split('-')[0]}"

    async def cut_cable(self) -> str:
        """A node is cut off for a while; or only the router does not hear its workers."""
        assert self.cables is not None
        node, one_way = self.rng.choice(NODES), self.rng.random() < 0.3
        if one_way:
            port = int(self.started.worker_address.rsplit(":", 1)[1])
            await asyncio.to_thread(self.cables.cut_to, node, self.cables.address, port)
        else:
            await asyncio.to_thread(self.cables.cut, node)
        try:
            await asyncio.sleep(self.rng.uniform(*STOPPED_S))
        finally:
            self.cables.heal(node)
        return "cut one way" if one_way else "cut"

    async def kill_router(self) -> str:
        os.kill(await asyncio.to_thread(router_pid), signal.SIGKILL)
        return "kill router"

    async def abort_storm(self) -> str:
        self.leaving.set()
        await asyncio.sleep(1.0)
        self.leaving.clear()
        return "abort storm"

    async def operate(self) -> str:
        """Any operation, sensible or not."""

        def ask() -> str:
            with baton.Admin(self.started.admin_address) as admin:
                names = sorted(self.workers())
                match self.rng.randrange(3):
                    case 0:
                        admin.drain(self.rng.choice(names))
                        return "drain"
                    case 1:
                        admin.undrain(*names)
                        return "undrain"
                    case _:
                        prefill = self.rng.randint(1, len(names) - 1)
                        admin.rebalance(prefill, len(names) - prefill)
                        return "rebalance"

        return await asyncio.to_thread(ask)

    def pages_leaked(self) -> int:
        """Pages that somebody holds though no request is live, once everybody is back and has had time to settle."""
        deadline = time.monotonic() + SETTLE_S
        held = -1
        while time.monotonic() < deadline:
            with contextlib.suppress(BatonError), baton.Admin(self.started.admin_address) as admin:
                cluster = admin.cluster()
                workers = [worker for pool in cluster.pools for worker in pool.workers]
                held = sum(worker.pages_held for worker in workers) + cluster.live_requests
                if held == 0 and len(workers) == sum(POOLS.values()):
                    return 0
            time.sleep(0.1)
        return held if held else -1


def figures(chaos: Chaos, minutes: float) -> dict[str, float]:
    tally = chaos.tally
    recoveries = sorted(tally.recoveries_s)
    return {
        "minutes": minutes,
        "faults": float(tally.faults.total()),
        "requests_done": float(tally.done),
        "requests_left_by_client": float(tally.left),
        "requests_failed_explained": float(sum(tally.refused.values())),
        "requests_failed_unexplained": float(len(tally.failed)),
        "tokens_wrong": float(tally.wrong),
        "tokens_missing": float(tally.missing),
        "tokens_repeated": float(tally.repeated),
        "recovery_s_p50": recoveries[len(recoveries) // 2],
        "recovery_s_p99": recoveries[int(0.99 * len(recoveries))],
        "pages_leaked": float(chaos.pages_leaked()),
    }


def measure(
    minutes: float, seed: int, most_faults: float = math.inf, calm_s: float = CALM_S
) -> tuple[dict[str, float], dict[str, Any]]:
    """A whole run with a Ray of its own, which is gone afterwards."""
    pools: dict[str, dict[str, Any]] = {
        "pools": dict(POOLS),
        "engine": {"num_pages": 400, "threads": 1, "checksum_every": 1},
        "router": {"port": 0, "admin_port": 0, "policy": "least_loaded"},
        "model": {"dtype": "float32", "path": str(CHECKPOINT)},
    }
    no_cables = why_not()
    if not no_cables:
        each = {"cpus": 1, "env": {"UCX_TLS": "tcp", "UCX_NET_DEVICES": DEVICE}}
        pools["placement"] = {"prefill": each, "decode": each}
    with contextlib.ExitStack() as stack:
        cables = None if no_cables else stack.enter_context(Cables())
        ray = start_local_ray() if cables is None else wired_ray(cables, NODES, CPUS)
        stack.callback(ray.stop)
        stack.enter_context(connected(ray))
        host = "127.0.0.1" if cables is None else ""
        resolved = resolve_here(parse_config("", pools))
        started = start_cluster(resolved, lambda process, stage: None, worker_host=host)
        chaos = Chaos(started, random.Random(seed), cables=cables, calm_s=calm_s)
        begun_s = time.monotonic()
        asyncio.run(chaos.run(60 * minutes, most_faults))
        took = (time.monotonic() - begun_s) / 60
        details = {
            "faults_by_kind": dict(chaos.tally.faults),
            "explained": dict(chaos.tally.refused),
            "cables": no_cables or "there",
        }
        return figures(chaos, took), {**details, "failed": chaos.tally.failed}


def main() -> None:
    parser = arguments(__doc__, "python -m tests.reliability.chaos --minutes 3 --seed 1", full_s=600.0)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--faults", type=int, default=math.inf, help="end after so many, if they take less time")
    parser.add_argument("--calm-s", type=float, default=CALM_S, help="between faults, on average")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that everything is taken down
    report = Report("chaos", GOALS)
    with progress(1) as step:
        step("faults at random")
        report.figures, report.details = measure(args.pick(args.minutes, 0.7, 0.1), args.seed, args.faults, args.calm_s)
    details = report.details
    report.setting = {"seed": args.seed, "cables": details["cables"]}
    report.setting |= {**details["faults_by_kind"], **details["explained"]}
    report.publish(args)
    for failure in report.details["failed"][:10]:
        print(failure)


if __name__ == "__main__":
    main()
