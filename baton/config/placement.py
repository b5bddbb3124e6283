"""Placement of workers: the resources that each takes of its node, and groups placed together. Pure.

`deploy` passes the result to Ray. With `strategy = "free"` each worker is placed by itself, and its node can be removed
after the worker has ended. The other strategies put workers into groups, in which every worker has a bundle of
resources; a bundle, with its GPUs, is always on one node.

    pack     groups of at least one prefill and one decode worker, each group on one node, with KV over NVLink
    spread   one group of all workers, on as many nodes as possible: a worker has a network card to itself

The ranks of a worker share its bundle, so they are on one node under every strategy. A worker of several ranks in no
other group has a group of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from baton.config.schema import BatonConfig, PoolPlacement
from baton.protocol.errors import ConfigError

_OWN_NAMES = {"CPU": "cpus", "GPU": "gpus", "memory": "", "object_store_memory": ""}


@dataclass(frozen=True, slots=True)
class Demand:
    """The resources of each rank of a worker, all ranks on one node, and the labels and environment they need there."""

    cpus: float
    gpus: float
    resources: dict[str, float]
    labels: dict[str, str]
    env: dict[str, str]
    ranks: int = 1

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of all ranks under Ray's names; empty if the worker takes none."""
        every = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {name: self.ranks * amount for name, amount in every.items() if amount > 0}

    @property
    def words(self) -> str:
        """Text such as "1 GPU, 1 baton_decode, ray.io/accelerator-type=H100"; empty if any node will do."""
        taken = [f"{amount:g} {name}" for name, amount in self.bundle.items()]
        return ", ".join([*taken, *(f"{label}={value}" for label, value in self.labels.items())])


@dataclass(frozen=True, slots=True)
class Group:
    """Workers whose nodes are chosen together; `strategy` is Ray's name for it."""

    name: str
    strategy: str
    workers: tuple[tuple[str, str], ...]  # (name, role) of each bundle


def demand(config: BatonConfig, role: str) -> Demand:
    """The resources of a worker of this role, or of a gateway."""
    pool: PoolPlacement = getattr(config.placement, role)
    ranks: int = getattr(config.tensor_parallel, role, 1)
    return Demand(pool.cpus, pool.gpus, dict(pool.resources), dict(pool.labels), dict(pool.env), ranks)


def groups(config: BatonConfig, roles: list[tuple[str, str]]) -> list[Group]:
    """The groups of a cluster that starts with these workers, given as (name, role)."""
    together = _shared_groups(config, roles)
    placed = {worker for group in together for worker in group.workers}
    return [*together, *own_groups(config, [worker for worker in roles if worker not in placed])]


def own_groups(config: BatonConfig, workers: list[tuple[str, str]]) -> list[Group]:
    """A group for each of these workers with several ranks that take resources."""
    wanted = {worker: demand(config, worker[1]) for worker in workers}
    return [
        Group(f"group-{worker[0]}", "STRICT_PACK", (worker,))
        for worker, each in wanted.items()
        if each.ranks > 1 and each.bundle
    ]


def _shared_groups(config: BatonConfig, roles: list[tuple[str, str]]) -> list[Group]:
    strategy = config.placement.strategy
    if strategy == "free":
        return []
    if strategy == "spread":
        return [Group("group-0", "SPREAD", tuple(roles))]
    prefill = [worker for worker in roles if worker[1] == "prefill"]
    decode = [worker for worker in roles if worker[1] == "decode"]
    count = min(len(prefill), len(decode))
    return [
        Group(f"group-{index}", "STRICT_PACK", (*prefill[index::count], *decode[index::count]))
        for index in range(count)
    ]


def check_placement(config: BatonConfig) -> None:
    """Raise `ConfigError` for a placement that Ray could never satisfy."""
    placement = config.placement
    pools = {role: demand(config, role) for role in ("prefill", "decode", "mixed", "gateway")}
    for role, wanted in pools.items():
        for name in wanted.resources.keys() & _OWN_NAMES.keys():
            instead = f"use {_OWN_NAMES[name]}" if _OWN_NAMES[name] else "leave it out"
            raise ConfigError(f"placement.{role}.resources has Ray's own {name}: {instead}.")
        placed = role != "gateway" and getattr(config.pools, role) > 0
        if placement.strategy != "free" and placed and not wanted.bundle:
            raise ConfigError(
                f'placement.strategy is "{placement.strategy}", but a {role} worker takes no resources of its node: '
                f"give placement.{role} gpus, cpus or resources."
            )
    prefill, decode = pools["prefill"].labels, pools["decode"].labels
    both_plain = (
        key for key in prefill.keys() & decode.keys() if not any(sign in prefill[key] + decode[key] for sign in "!(")
    )
    for key in sorted(both_plain):
        if placement.strategy == "pack" and prefill[key] != decode[key]:
            raise ConfigError(
                f'placement.strategy "pack" puts prefill and decode workers on one node, which cannot be both '
                f"{key}={prefill[key]} and {key}={decode[key]}."
            )


def gateways_here(config: BatonConfig) -> int:
    """The number of gateways on the router's node: all, unless their placement asks for resources or labels."""
    return 0 if demand(config, "gateway").words else config.pools.gateways


def placement_words(config: BatonConfig) -> dict[str, str]:
    """The placement as a setting to print; empty if none is configured."""
    wanted = {role: demand(config, role).words for role in ("prefill", "decode", "mixed", "gateway")}
    parts = [
        f"{role}: {words}"
        for role, words in wanted.items()
        if words and (role == "gateway" or getattr(config.pools, role))
    ]
    if config.placement.strategy == "free" and not parts:
        return {}
    return {"placement": "; ".join([config.placement.strategy, *parts])}
