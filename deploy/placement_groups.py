"""Translates `baton/config/placement.py` into Ray's placement groups and actor options."""

from __future__ import annotations

from typing import Any

from ray.util.placement_group import get_placement_group, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from baton.config.placement import demand, groups
from baton.config.resolve import Resolved
from baton.protocol.errors import ConfigError


def reserve_groups(resolved: Resolved, prefix: str) -> None:
    """Create every placement group; where no node has room for one, Ray's autoscaler starts nodes.

    Raises `ConfigError` when Ray refuses a group.
    """
    for group in groups(resolved.config, resolved.roles):
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


def actor_options(resolved: Resolved, name: str, role: str, prefix: str) -> dict[str, Any]:
    """Options of a worker's actor: its resources, its environment, and its bundle if it is in a placement group."""
    wanted = demand(resolved.config, role)
    options: dict[str, Any] = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus, "resources": wanted.resources}
    if wanted.env:
        options["runtime_env"] = {"env_vars": wanted.env}
    for group in groups(resolved.config, resolved.roles):
        if (name, role) in group.workers and prefix + group.name in _standing(prefix):
            place = get_placement_group(prefix + group.name)
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                place, placement_group_bundle_index=group.workers.index((name, role))
            )
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
    empty = {
        prefix + group.name
        for group in groups(resolved.config, resolved.roles)
        if not live & {name for name, _ in group.workers}
    }
    for name in _standing(prefix) & empty:
        remove_placement_group(get_placement_group(name))


def _standing(prefix: str) -> set[str]:
    table: dict[str, dict[str, Any]] = placement_group_table()
    names = (row["name"] for row in table.values() if row["state"] != "REMOVED")
    return {name for name in names if name.startswith(f"{prefix}group-")}
