"""Random faults against a live cluster under steady streams with known answers.

A Ray of its own with router, two gateways, 2 prefill and 3 decode workers of the built-in model. Workers and gateways
are killed and stopped, the router is killed, clients leave in crowds, operators drain, rebalance and undrain. The
gateways share a port, so clients of one that has ended resume at the other. As root, the workers run on two Ray nodes
and the gateways on a third, behind network cables, which are cut, too. Every answer must be that of an undisturbed
cluster, with each index once. At the end no worker may hold a page.
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
from baton.client.errors import BatonError
from baton.deploy.launcher import Started
from baton.harness.load import Load, Sent
from baton.harness.report import Goal, Report, arguments, progress
from tests.reliability.cables import DEVICE, Cables, why_not
from tests.reliability.leaks import leaked_at_rest
from tests.reliability.ray_cluster import gateways_of, ray_cluster, router_pid, workers_of
from tests.reliability.wired_ray import wired_ray

GOALS = {
    name: Goal(0, at_most=True)
    for name in ("tokens_wrong", "tokens_missing", "tokens_repeated", "requests_failed_unexplained", "pages_leaked")
}
POOLS = {"prefill": 2, "decode": 3}
GATEWAYS = 2
FRONT, RESOURCE = "front", "baton_gateway"  # The gateways' node, and what each takes of it
NODES, CPUS = ("left", "right", FRONT), (2, 3, 0)
OPTIONS: dict[str, Any] = {"max_tokens": 120, "ignore_eos": True, "temperature": 0.7}
PROMPTS = [[5 + index] * (40 + 60 * index) for index in range(6)]
STREAMS = 8
CALM_S = 4.0  # between faults, on average: from half of it to one and a half
STOPPED_S = (0.5, 6.0)  # how long a process is stopped or a cable is cut
LEAVING_SHARE, LEAVE_WITHIN_S = 0.9, 1.0
SETTLE_S = 60.0

Fault = Callable[[], Awaitable[str]]  # returns its kind


@dataclass(eq=False)
class Chaos:
    """Faults against a started cluster, and what is measured of them."""

    started: Started
    load: Load
    rng: random.Random
    cables: Cables | None = None
    calm_s: float = CALM_S
    faults: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)  # from each fault's begin to the next complete answer

    async def run(self, seconds: float, max_faults: float = math.inf) -> None:
        """Undisturbed answers first, then faults one after the other, for so long or until `max_faults`."""
        faults: list[Fault] = [self.kill_worker, self.stop_worker, self.kill_router, self.abort_storm]
        faults += [self.kill_gateway, self.stop_gateway, self.operate, self.operate]
        if self.cables is not None:
            faults += [self.cut_cable, self.cut_one_way, self.cut_cable]
        await self.load.learn()
        async with self.load.clients(STREAMS):
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s and self.faults.total() < max_faults:
                await asyncio.sleep(self.calm_s * self.rng.uniform(0.5, 1.5))
                await self._inflict(self.rng.choice(faults))

    async def _inflict(self, fault: Fault) -> None:
        begun_s = time.monotonic()
        answer = asyncio.create_task(self.load.next_answer(SETTLE_S))
        with contextlib.suppress(BatonError):  # the router may be away
            self.faults[await fault()] += 1
        await answer
        self.recoveries_s.append(time.monotonic() - begun_s)

    async def _victim(self, members_of: Callable[[Started], dict[str, Any]]) -> Any:
        members = await asyncio.to_thread(members_of, self.started)
        if not members:
            raise BatonError("No process is registered.")
        return members[self.rng.choice(sorted(members))]

    async def kill_worker(self) -> str:
        return _kill(await self._victim(workers_of))

    async def kill_gateway(self) -> str:
        return _kill(await self._victim(gateways_of))

    async def stop_worker(self) -> str:
        return await self._stop(await self._victim(workers_of))

    async def stop_gateway(self) -> str:
        return await self._stop(await self._victim(gateways_of))

    async def _stop(self, victim: Any) -> str:
        os.kill(victim.pid, signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(*STOPPED_S))
        with contextlib.suppress(ProcessLookupError):  # the router may have had it killed
            os.kill(victim.pid, signal.SIGCONT)
        return f"stop {victim.name.split('-')[0]}"

    async def cut_cable(self) -> str:
        """Cut a node off for a while."""
        assert self.cables is not None
        node = self.rng.choice(NODES)
        await self._cut(node, self.cables.cut, node)
        return f"cut {'gateways' if node == FRONT else 'workers'}"

    async def cut_one_way(self) -> str:
        """Cut the way from a node's workers or gateways to the router, or from workers to the gateways."""
        assert self.cables is not None
        node = self.rng.choice(NODES)
        if node != FRONT and self.rng.random() < 0.5:
            await self._cut(node, self.cables.cut_to, node, self.cables.address_of(FRONT))
            return "cut workers from gateways"
        port = int(self.started.worker_address.rsplit(":", 1)[1])
        await self._cut(node, self.cables.cut_to, node, self.cables.address, port)
        return f"cut {'gateways' if node == FRONT else 'workers'} from router"

    async def _cut(self, node: str, cut: Callable[..., None], *arguments: Any) -> None:
        assert self.cables is not None
        await asyncio.to_thread(cut, *arguments)
        try:
            await asyncio.sleep(self.rng.uniform(*STOPPED_S))
        finally:
            self.cables.heal(node)

    async def kill_router(self) -> str:
        os.kill(await asyncio.to_thread(router_pid), signal.SIGKILL)
        return "kill router"

    async def abort_storm(self) -> str:
        await self.load.leave(LEAVING_SHARE, LEAVE_WITHIN_S)
        return "abort storm"

    async def operate(self) -> str:
        """Any operation, sensible or not."""

        def start() -> str:
            names = sorted(workers_of(self.started))
            with baton.Admin(self.started.admin_address) as admin:
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

        return await asyncio.to_thread(start)


def _kill(victim: Any) -> str:
    os.kill(victim.pid, signal.SIGKILL)
    return f"kill {victim.name.split('-')[0]}"


def explained(sent: Sent) -> bool:
    """Whether a fault accounts for the error: a request that loses its worker twice ends, and others may be retried."""
    return sent.error is not None and (isinstance(sent.error, baton.WorkerLost) or sent.error.retryable)


def figures_of(chaos: Chaos, minutes: float) -> dict[str, float]:
    """All but the leaked pages."""
    load, recoveries_s = chaos.load, sorted(chaos.recoveries_s)
    failed = [sent for sent in load.ended if sent.error is not None]
    return {
        "minutes": minutes,
        "faults": float(chaos.faults.total()),
        "requests_done": float(len(load.done)),
        "requests_left_by_client": float(len(load.left)),
        "requests_failed_explained": float(sum(map(explained, failed))),
        "requests_failed_unexplained": float(sum(not explained(sent) for sent in failed)),
        "tokens_wrong": float(sum(sent.wrong for sent in load.ended)),
        "tokens_missing": float(sum(sent.missing for sent in load.ended)),
        "tokens_repeated": float(sum(sent.repeated for sent in load.ended)),
        "recovery_s_p50": recoveries_s[len(recoveries_s) // 2],
        "recovery_s_p99": recoveries_s[int(0.99 * len(recoveries_s))],
    }


async def torment(
    started: Started, cables: Cables | None, minutes: float, seed: int, max_faults: float, calm_s: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and details of a run against a started cluster."""
    rng = random.Random(seed)
    async with baton.AsyncClient(started.address) as client:
        chaos = Chaos(started, Load(client, OPTIONS, PROMPTS, rng=rng), rng, cables, calm_s)
        begun_s = time.monotonic()
        await chaos.run(60 * minutes, max_faults)
        took = (time.monotonic() - begun_s) / 60
    figures = figures_of(chaos, took)
    figures["pages_leaked"] = float(await leaked_at_rest(started.admin_address, sum(POOLS.values())))
    errors = [sent.error for sent in chaos.load.ended if sent.error is not None and explained(sent)]
    return figures, {
        "faults_by_kind": dict(chaos.faults),
        "explained": dict(Counter(type(error).__name__ for error in errors)),
        "failed": [sent.fault for sent in chaos.load.ended if sent.fault and not explained(sent)],
    }


def wired(cables: Cables) -> dict[str, Any]:
    """The arguments of a cluster behind cables: workers on two nodes, gateways on a third."""
    worker = {"cpus": 1, "env": {"UCX_TLS": "tcp", "UCX_NET_DEVICES": DEVICE}}
    return {
        "ray": wired_ray(cables, NODES, CPUS, {FRONT: {RESOURCE: GATEWAYS}}),
        "worker_host": "",
        "gateway": {"host": "0.0.0.0", "port": 0},
        "placement": {"prefill": worker, "decode": worker, "gateway": {"resources": {RESOURCE: 1}}},
    }


def measure(
    minutes: float, seed: int, max_faults: float = math.inf, calm_s: float = CALM_S
) -> tuple[dict[str, float], dict[str, Any]]:
    """A whole run, with cables where this machine allows them."""
    no_cables = why_not()
    with contextlib.ExitStack() as stack:
        cables = None if no_cables else stack.enter_context(Cables())
        started = stack.enter_context(
            ray_cluster(
                {**POOLS, "gateways": GATEWAYS},
                policy="least_loaded",
                engine={"checksum_every": 1},
                **(wired(cables) if cables is not None else {}),
            )
        )
        figures, details = asyncio.run(torment(started, cables, minutes, seed, max_faults, calm_s))
        return figures, {**details, "cables": no_cables or "there"}


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
    for failure in details["failed"][:10]:
        print(failure)


if __name__ == "__main__":
    main()
