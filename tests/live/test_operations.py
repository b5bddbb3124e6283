"""Operators change the pools of a live cluster under load; every stream is complete and correct."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

import baton
from baton.harness.load import Load
from baton.harness.process_cluster import ProcessCluster, operate, plans
from baton.protocol.errors import BatonError, Conflict, InvalidRequest, NotFound
from baton.protocol.worker import RoleName
from baton.router.core.operation import Drain, Migrate, OperationSpec, OperationState, Rebalance, Undrain
from tests.reliability.random_commands import command_at_random, migrate_many
from tests.reliability.steady import OPTIONS, WIDTH, steady_streams

Scenario = Callable[[ProcessCluster, Load], Awaitable[None]]
Run = Callable[[Scenario], None]


@pytest.fixture(scope="module")
def run(checkpoint: Path) -> Iterator[Run]:
    """Runs scenarios under steady streams on one cluster of 2 + 2 workers."""
    with asyncio.Runner() as runner:
        router_config, worker_config = plans(checkpoint, 256, 400, policy="least_loaded", chunk_tokens=64)
        cluster = ProcessCluster(router_config, worker_config, {"prefill": 2, "decode": 2})
        runner.run(cluster.__aenter__())

        async def under_streams(scenario: Scenario) -> None:
            async with baton.AsyncClient(cluster.address) as client:
                async with steady_streams(cluster, client) as streams:
                    await asyncio.wait_for(scenario(cluster, streams), 90)
                    await restore()
                assert not streams.wrong, streams.wrong[:3]
                assert len(streams.done) >= WIDTH

        async def restore() -> None:
            core = cluster.router.driver.core
            await operate(cluster, Undrain(tuple(core.state.workers)))
            await operate(cluster, Rebalance(2, 2))

        try:
            yield lambda scenario: runner.run(under_streams(scenario))
        finally:
            runner.run(cluster.__aexit__())


async def _done(cluster: ProcessCluster, spec: OperationSpec) -> None:
    operation = await operate(cluster, spec)
    assert operation.state is OperationState.DONE, (spec, operation.message)
    if isinstance(spec, Rebalance):
        pool = cluster.router.driver.core.state.pool
        assert (len(pool(RoleName.PREFILL)), len(pool(RoleName.DECODE))) == (spec.prefill, spec.decode)


async def _change_everything(cluster: ProcessCluster, streams: Load) -> None:
    core = cluster.router.driver.core
    for split in (Rebalance(3, 1), Rebalance(1, 3)):
        await _done(cluster, split)
    one = core.state.pool(RoleName.DECODE)[0].name
    for spec in (Drain((one,)), Undrain((one,)), Rebalance(2, 2)):
        await _done(cluster, spec)
    await migrate_many(cluster, 50, random.Random(0))


@pytest.mark.slow
def test_rebalancing_draining_and_fifty_migrations_cost_no_token(run: Run) -> None:
    run(_change_everything)


@pytest.mark.slow
def test_random_commands_cost_no_token(run: Run) -> None:
    async def scenario(cluster: ProcessCluster, streams: Load) -> None:
        assert await command_at_random(cluster, streams, 12.0, seed=1) > 20

    run(scenario)


async def _bad_commands(cluster: ProcessCluster, streams: Load) -> None:
    driver = cluster.router.driver
    decoders = tuple(view.name for view in driver.core.state.pool(RoleName.DECODE))
    refused: list[tuple[OperationSpec, type[BatonError], str]] = [
        (Drain(("decode-7",)), NotFound, "did you mean 'decode-"),
        (Drain(decoders), InvalidRequest, "without a worker"),
        (Rebalance(0, 4), InvalidRequest, "at least one"),
        (Rebalance(3, 3), InvalidRequest, "asks for 6 workers, and 4 serve"),
        (Migrate("no-such-request"), NotFound, "is not live"),
    ]
    for spec, kind, words in refused:
        with pytest.raises(kind, match=words):
            driver.start_operation("", spec, False)
    first = driver.start_operation("mine", Rebalance(1, 3), False)
    assert driver.start_operation("mine", Rebalance(1, 3), False) is first
    with pytest.raises(InvalidRequest, match="another operation"):
        driver.start_operation("mine", Rebalance(3, 1), False)
    if not first.state.ended:
        with pytest.raises(Conflict, match="under way"):
            driver.start_operation("", Rebalance(3, 1), False)
    async for _ in driver.watch("mine"):
        pass
    assert first.state is OperationState.DONE
    (last,) = driver.core.state.pool(RoleName.PREFILL)
    with pytest.raises(InvalidRequest, match="prefill pool without a worker"):
        driver.start_operation("", Drain((last.name,)), False)
    await operate(cluster, Rebalance(2, 2))


def test_bad_commands_are_refused_in_one_sentence_and_change_nothing(run: Run) -> None:
    run(_bad_commands)


async def _die_while_switching(cluster: ProcessCluster, streams: Load) -> None:
    driver = cluster.router.driver
    await cluster.until(lambda: all(view.running for view in driver.core.state.pool(RoleName.DECODE)))
    operation = driver.start_operation("", Rebalance(3, 1), False)
    victim = operation.steps[0].worker
    os.kill(cluster.processes[victim].pid, signal.SIGKILL)
    driver.lose(victim)
    async for moved in driver.watch(operation.operation_id):
        operation = moved
    assert operation.state is OperationState.FAILED
    assert "died" in operation.message
    cluster.spawn(victim, victim.split("-")[0])
    await cluster.until(lambda: victim in driver.core.state.workers)
    await operate(cluster, Rebalance(2, 2))
    await cluster.until(lambda: len(driver.core.state.pool(RoleName.DECODE)) == 2)


@pytest.mark.slow
def test_a_worker_that_dies_while_it_switches_loses_no_token(run: Run) -> None:
    run(_die_while_switching)


async def _prefix_stays(cluster: ProcessCluster, streams: Load) -> None:
    prompt = [9] * 128
    first = await streams.client.generate(prompt, seed=3, **OPTIONS)
    worker = first.prefill_worker
    before = cluster.router.driver.core.state.workers[worker].info.pid
    core = cluster.router.driver.core
    for spec in (Rebalance(1, 3), Rebalance(2, 2)):
        await operate(cluster, spec)
    assert core.state.workers[worker].info.pid == before
    again = [await streams.client.generate(prompt, seed=3, **OPTIONS) for _ in range(4)]
    assert max(answer.cached_tokens for answer in again) >= 112
    assert all(answer.token_ids == first.token_ids for answer in again)


def test_a_switched_worker_keeps_its_process_and_its_prefix_cache(run: Run) -> None:
    run(_prefix_stays)
