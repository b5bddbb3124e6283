"""Random operator commands against a live cluster under steady streams: every answer must be complete and right.

2 prefill and 2 decode workers of the built-in model. Commands are drains, rebalances and migrations, valid or not, some
of them cancelled.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import baton
from baton.builtin_model import CHECKPOINT
from baton.harness.load import Load
from baton.harness.process_cluster import ProcessCluster, operate, plans
from baton.harness.report import Goal, Report, arguments, progress
from baton.protocol.errors import BatonError
from baton.router.core.operation import Drain, Migrate, OperationSpec, OperationState, Rebalance, Undrain
from tests.reliability.leaks import leaked_at_rest
from tests.reliability.steady import steady_streams

GOALS = {"answers_wrong": Goal(0, at_most=True), "pages_leaked": Goal(0, at_most=True)}


async def migrate_many(cluster: ProcessCluster, count: int, rng: random.Random) -> None:
    """Move running sequences until `count` have arrived at another worker."""
    moved = 0
    records = cluster.router.driver.core.operations.records
    while moved < count:
        await cluster.until(lambda: any(record.may_move(1e9) for record in records.values()))
        movable = sorted(request_id for request_id, record in records.items() if record.may_move(1e9))
        operation = await operate(cluster, Migrate(rng.choice(movable)))
        moved += operation.state is OperationState.DONE


def random_ask(rng: random.Random, names: list[str], live: list[str]) -> OperationSpec:
    """Any command, valid or not."""
    match rng.randrange(6):
        case 0:
            return Drain(tuple(rng.sample(names, rng.randint(1, 2))))
        case 1:
            return Undrain(tuple(rng.sample(names, 2)))
        case 2 | 3:
            return Migrate(rng.choice([*live, "nobody"]), rng.choice([None, *names, "nobody"]))
        case _:
            prefill = rng.randint(0, len(names))
            return Rebalance(prefill, len(names) - prefill + (rng.random() < 0.1))


async def command_at_random(cluster: ProcessCluster, streams: Load, seconds: float, seed: int) -> int:
    """Commands for so long, some of them cancelled; then the pools are 2 + 2 again. Returns how many were accepted."""
    rng = random.Random(seed)
    driver, accepted = cluster.router.driver, 0
    names = [name for name, _ in cluster.names]
    end_s = driver.clock() + seconds
    while driver.clock() < end_s:
        try:
            operation = driver.start_operation("", random_ask(rng, names, sorted(streams.live)), False)
            accepted += 1
            if rng.random() < 0.2:
                driver.cancel_operation(operation.operation_id)
        except BatonError as error:
            assert error.message.endswith((".", "`.")), error.message
        await asyncio.sleep(rng.expovariate(20))
    await cluster.until(lambda: not driver.core.operations.running)
    await operate(cluster, Undrain(tuple(names)))
    final = await operate(cluster, Rebalance(2, 2))
    assert final.state is OperationState.DONE, final.message
    return accepted


async def run(minutes: float, seed: int) -> dict[str, float]:
    """Figures of so many minutes."""
    router_config, worker_config = plans(CHECKPOINT, 1024, 1024, policy="least_loaded")
    async with (
        ProcessCluster(router_config, worker_config, {"prefill": 2, "decode": 2}) as cluster,
        baton.AsyncClient(cluster.address) as client,
    ):
        async with steady_streams(cluster, client) as streams:
            commands = await command_at_random(cluster, streams, 60 * minutes, seed)
        return {
            "commands": float(commands),
            "answers": float(len(streams.done)),
            "migrations": float(sum(sent.migrations for sent in streams.done)),
            "answers_wrong": float(len(streams.wrong)),
            "pages_leaked": float(await leaked_at_rest(cluster.admin_address, len(cluster.names))),
        }


def main() -> None:
    parser = arguments(__doc__, "python -m tests.reliability.random_commands --minutes 5 --seed 1", full_s=600.0)
    parser.add_argument("--minutes", type=float, default=5.0)
    args: Any = parser.parse_args()
    setting = {"minutes": args.pick(args.minutes, 0.5, 0.05), "seed": args.seed}
    report = Report("random_commands", GOALS, setting=setting)
    with progress(1) as step:
        step("commands at random")
        report.figures = asyncio.run(run(report.setting["minutes"], args.seed))
    report.publish(args)


if __name__ == "__main__":
    main()
