"""Every placement policy by the name that `--policy` takes."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from baton.protocol.errors import ConfigError
from baton.router.policy.baselines.balancing import LeastLoaded, Random, RoundRobin
from baton.router.policy.baselines.cache_aware import CacheAware
from baton.router.policy.baselines.conductor import Conductor
from baton.router.policy.baselines.kv_router import KvRouter
from baton.router.policy.baselines.latency_headroom import LatencyHeadroom
from baton.router.policy.baselines.power_of_two import PowerOfTwo
from baton.router.policy.placement import Placement
from baton.router.policy.predicted_latency import PredictedLatency

POLICIES: dict[str, Callable[[bool, int], Placement]] = {
    "predicted_latency": lambda refuse_late, seed: PredictedLatency(refuse_late),
    "round_robin": lambda refuse_late, seed: RoundRobin(seed),
    "random": lambda refuse_late, seed: Random(seed),
    "least_loaded": lambda refuse_late, seed: LeastLoaded(seed),
    "power_of_two": lambda refuse_late, seed: PowerOfTwo(seed),
    "cache_aware": lambda refuse_late, seed: CacheAware(seed),
    "kv_router": lambda refuse_late, seed: KvRouter(seed),
    "conductor": lambda refuse_late, seed: Conductor(seed),
    "latency_headroom": lambda refuse_late, seed: LatencyHeadroom(seed),
}
NAMES = tuple(POLICIES)


def check_policy(name: str) -> None:
    """Raise `ConfigError` naming the nearest policy and all others unless `name` is one."""
    if name not in NAMES:
        (near,) = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)
        raise ConfigError(f"There is no policy {name!r}; did you mean {near!r}? Known are {', '.join(NAMES)}.")


def make_policy(name: str, refuse_late: bool = True, seed: int = 0) -> Placement:
    """The policy of that name; raises `ConfigError` listing the known ones."""
    check_policy(name)
    return POLICIES[name](refuse_late, seed)
