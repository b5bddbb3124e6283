"""More or fewer workers in a running cluster.

A new worker asks Ray for what its pool takes of a node. Where no node has it, the actor waits, and that is the demand
for which Ray's autoscaler brings a node. A worker that goes is drained first and ended then; its node, idle now, is the
autoscaler's to take away.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from baton.config.memory import check_more_memory
from baton.config.resolve import Resolved
from baton.deploy.ending import Progress
from baton.deploy.local_ray import LocalRay
from baton.deploy.look import serving_cluster
from baton.deploy.machine import machine_facts
from baton.deploy.running import RunningCluster, change_note
from baton.protocol.errors import ConfigError

POOLS = ("prefill", "decode", "mixed")
Pools = Mapping[str, list[str]]  # pool → workers that serve in it
Drain = Callable[[list[str]], None]  # returns when these workers hold no request any more


def new_names(pool: str, count: int, live: Iterable[str]) -> list[str]:
    """The first `count` unused names of the pool."""
    taken = set(live)
    free = (name for index in itertools.count() if (name := f"{pool}-{index}") not in taken)
    return list(itertools.islice(free, count))


def leaving(pool: str, count: int, pools: Pools) -> list[str]:
    """The `count` workers of the pool that go, the last by name first. Raises `ConfigError` where it cannot."""
    members = sorted(pools.get(pool, []), key=_number)
    if count > len(members):
        held = f"only {len(members)}" if members else "none"
        raise ConfigError(f"{count} {pool} workers cannot be removed: there are {held}.")
    gone = members[::-1][:count]
    if not {*pools.get("decode", []), *pools.get("mixed", [])} - set(gone):
        raise ConfigError(
            "No pool would decode: keep at least one decode or mixed worker, or end it with `baton down`."
        )
    return gone


def scale(pool: str, delta: int, pools: Pools, drain: Drain, tell: Progress) -> list[str]:
    """Add `delta` workers to a pool of the running cluster, or remove as many; returns their names.

    `pools` are the workers as they serve now: a worker may have left the pool that it is named after.

    New ones serve when this returns, however long their nodes take to come; if that fails or is interrupted, none of
    them stays. Those that go are drained by `drain` before they end. `tell(name, what it is doing)` hears of progress.
    Raises `ConfigError` when there is no cluster, no such pool, too little memory or too few workers.
    """
    if pool not in POOLS:
        raise ConfigError(f"There is no pool {pool!r}: it is prefill, decode or mixed.")
    cluster = serving_cluster()
    if cluster is None or not cluster.resolved:
        raise ConfigError("No cluster is running: start one with `baton up`.")
    resolved = Resolved.from_json(cluster.resolved)
    from baton.deploy.launcher import connected, live_workers

    with connected(LocalRay(cluster.ray_address, cluster.ray_folder)):
        live = live_workers(cluster.prefix)
        if delta > 0:
            if cluster.ray_folder:
                check_more_memory(resolved.worker_memory, delta, machine_facts().free)
            names = new_names(pool, delta, live | set(cluster.workers))
            _add(cluster, resolved, [(name, pool) for name in names], tell)
        elif names := leaving(pool, -delta, pools):
            _remove(cluster, resolved, names, drain, tell)
    return names


def _add(cluster: RunningCluster, resolved: Resolved, workers: list[tuple[str, str]], tell: Progress) -> None:
    from baton.deploy.launcher import start_workers, stop_workers

    names = [name for name, _ in workers]
    try:
        start_workers(resolved, workers, cluster.worker_address, tell, cluster.prefix)
        change_note(cluster.id, lambda noted: replace(noted, workers=(*noted.workers, *names)))
    except BaseException:
        stop_workers(resolved, names, cluster.prefix)
        raise


def _remove(cluster: RunningCluster, resolved: Resolved, names: list[str], drain: Drain, tell: Progress) -> None:
    from baton.deploy.launcher import stop_workers

    for name in names:
        tell(name, "draining")
    drain(names)
    for name in names:
        tell(name, "stopping")
    stop_workers(resolved, names, cluster.prefix)
    change_note(
        cluster.id, lambda noted: replace(noted, workers=tuple(name for name in noted.workers if name not in names))
    )
    for name in names:
        tell(name, "done, its place is free")


def _number(name: str) -> tuple[int, str]:
    digits = re.search(r"\d+$", name)
    return int(digits.group()) if digits else 0, name
