"""Translates `baton/config/placement.py` into Ray's placement groups and actor options."""

from __future__ import annotations

from typing import Any

from ray.util.placement_group import get_placement_group, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from baton.config.placement import Group, demand, groups, own_groups
from baton.config.resolve import Resolved
from baton.protocol.errors import ConfigError


def reserve_groups(resolved: Resolved, prefix: str) -> None:
    """Create the placement groups with which a cluster starts; where no node has room for one, Ray's autoscaler starts
    nodes.

    Raises `ConfigError` when Ray refuses a group.
    """
    for group in groups(resolved.config, resolved.roles):
        _reserve(resolved, group, prefix)


def reserve_own_groups(resolved: Resolved, workers: list[tuple[str, str]], prefix: str) -> None:
    """Create a placement group for each of these workers, given as (name, role), that needs one and has none.

    Raises `ConfigError` when Ray refuses a group.
    """
    standing = _standing(prefix)
    placed = [
        worker
        for group in groups(resolved.config, resolved.roles)
        if prefix + group.name in standing
        for worker in group.workers
    ]
    for group in own_groups(resolved.config, [worker for worker in workers if worker not in placed]):
        _reserve(resolved, group, prefix)


def _reserve(resolved: Resolved, group: Group, prefix: str) -> None:
    wanted = [demand(resolved.config, role) for _, role in group.workers]
    try:
        placement_group(
            [each.bundle for each in wanted],
            strategy=group.strategy,
            name=prefix + group.name,
            lifetime="detached",
            bundle_label_selector=[each.labels for each in wanted] if any(each.labels for each in wanted) else None,
        )
    except ValueError as error:
        raise ConfigError(f"Ray refuses the placement: {error}") from None


def rank_options(resolved: Resolved, name: str, role: str, prefix: str) -> dict[str, Any]:
    """Options of each rank of a worker: its resources, its environment, and the worker's bundle if it has one."""
    wanted = demand(resolved.config, role)
    options: dict[str, Any] = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus, "resources": wanted.resources}
    if wanted.env:
        options["runtime_env"] = {"env_vars": wanted.env}
    standing = _standing(prefix)
    for group in (*groups(resolved.config, resolved.roles), *own_groups(resolved.config, [(name, role)])):
        if (name, role) in group.workers and prefix + group.name in standing:
            place = get_placement_group(prefix + group.name)
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                place, placement_group_bundle_index=group.workers.index((name, role))
            )
            break
    return options


def actor_options(resolved: Resolved, name: str, role: str, prefix: str) -> dict[str, Any]:
    """Options of a worker's actor, which is its first rank, or of a gateway's: with a node of its own choice if it is
    in no placement group.
    """
    options, wanted = rank_options(resolved, name, role, prefix), demand(resolved.config, role)
    if "scheduling_strategy" in options:
        return options
    if wanted.labels:
        options["label_selector"] = wanted.labels
    if resolved.config.placement.strategy == "spread":
        options["scheduling_strategy"] = "SPREAD"
    return options


def release_groups(prefix: str) -> None:
    """Remove every placement group of the cluster."""
    for name in _standing(prefix):
        remove_placement_group(get_placement_group(name))


def release_empty_groups(resolved: Resolved, prefix: str, live: set[str]) -> None:
    """Remove the placement groups without a worker in `live`."""
    shared = {
        prefix + group.name: {name for name, _ in group.workers} for group in groups(resolved.config, resolved.roles)
    }
    for name in _standing(prefix):
        own = {name.removeprefix(f"{prefix}group-")}
        if not live & shared.get(name, own):
            remove_placement_group(get_placement_group(name))


def _standing(prefix: str) -> set[str]:
    table: dict[str, dict[str, Any]] = placement_group_table()
    names = (row["name"] for row in table.values() if row["state"] != "REMOVED")
    return {name for name in names if name.startswith(f"{prefix}group-")}
