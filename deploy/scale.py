"""Adds workers to a running cluster, or removes them.

A new worker's actor asks Ray for its pool's resources. Where no node has them, the actor waits, and Ray's autoscaler
starts a node for it. A worker to be removed is drained before it ends; then the autoscaler may remove its idle node.
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
Drain = Callable[[list[str]], None]  # Returns when these workers hold no more requests.


def new_names(pool: str, count: int, live: Iterable[str]) -> list[str]:
    """The first `count` unused names of the pool."""
    taken = set(live)
    free = (name for index in itertools.count() if (name := f"{pool}-{index}") not in taken)
    return list(itertools.islice(free, count))


def leaving(pool: str, count: int, pools: Pools) -> list[str]:
    """The `count` workers to remove from the pool, the last by name first.

    Raises `ConfigError` when the pool has fewer, or when no worker would be left that decodes.
    """
    members = sorted(pools.get(pool, []), key=_number)
    if count > len(members):
        raise ConfigError(f"Cannot remove {count} from the {pool} pool: it has {len(members)}.")
    gone = members[::-1][:count]
    if not {*pools.get("decode", []), *pools.get("mixed", [])} - set(gone):
        raise ConfigError(
            "No decode worker would be left: keep at least one decode or mixed worker, or use `baton down`."
        )
    return gone


def scale(pool: str, delta: int, pools: Pools, drain: Drain, report: Progress) -> list[str]:
    """Add `delta` workers to a pool of the running cluster, or remove -`delta`; returns their names.

    `pools` are the workers as they serve now: a worker may have left the pool that it is named after.

    New workers serve when this returns; there is no time limit for their nodes to join. On an error or an interrupt
    all of them are removed again. Workers to be removed are drained by `drain` first. `report(name, activity)` is
    called on progress. Raises `ConfigError` when there is no cluster, no such pool, too little memory or too few
    workers.
    """
    if pool not in POOLS:
        raise ConfigError(f"There is no pool {pool!r}: it is prefill, decode or mixed.")
    cluster = serving_cluster()
    if cluster is None or not cluster.resolved:
        raise ConfigError("No cluster is running: start one with `baton up`.")
    resolved = Resolved.from_json(cluster.resolved)
    from baton.deploy.launcher import live_workers
    from baton.deploy.ray_connection import connected

    with connected(LocalRay(cluster.ray_address, cluster.ray_folder)):
        live = live_workers(cluster.prefix)
        if delta > 0:
            if cluster.ray_folder:
                check_more_memory(resolved.worker_memory(pool), delta, machine_facts().free)
            names = new_names(pool, delta, live | set(cluster.workers))
            _add(cluster, resolved, [(name, pool) for name in names], report)
        elif names := leaving(pool, -delta, pools):
            _remove(cluster, resolved, names, drain, report)
    return names


def _add(cluster: RunningCluster, resolved: Resolved, workers: list[tuple[str, str]], report: Progress) -> None:
    from baton.deploy.launcher import start_workers, stop_workers

    names = [name for name, _ in workers]
    try:
        start_workers(resolved, workers, cluster.worker_address, report, cluster.prefix)
        change_note(cluster.id, lambda noted: replace(noted, workers=(*noted.workers, *names)))
    except BaseException:
        stop_workers(resolved, names, cluster.prefix)
        raise


def _remove(cluster: RunningCluster, resolved: Resolved, names: list[str], drain: Drain, report: Progress) -> None:
    from baton.deploy.launcher import stop_workers

    for name in names:
        report(name, "draining")
    drain(names)
    for name in names:
        report(name, "stopping")
    stop_workers(resolved, names, cluster.prefix)
    change_note(
        cluster.id, lambda noted: replace(noted, workers=tuple(name for name in noted.workers if name not in names))
    )
    for name in names:
        report(name, "done: stopped, and its resources are free")


def _number(name: str) -> tuple[int, str]:
    digits = re.search(r"\d+$", name)
    return int(digits.group()) if digits else 0, name
