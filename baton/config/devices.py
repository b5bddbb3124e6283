"""On which device a worker of each pool computes, and how much of it is its own. Pure."""

from __future__ import annotations

from baton.config.schema import BatonConfig
from baton.protocol.errors import ConfigError

SHARE = 0.9  # of a GPU that its workers take together; the rest is for the driver and its kernels
ROLES = ("prefill", "decode", "mixed")


def device(config: BatonConfig, role: str) -> str:
    """ "cpu", or the name of a GPU among those that the worker's process sees.

    With engine.device = "auto" a worker computes on a GPU where its pool takes GPUs (placement.<role>.gpus). Ray shows
    a worker only those that it was given, so the first of them is right.
    """
    chosen = config.engine.device
    if chosen == "auto":
        return "cuda:0" if getattr(config.placement, role).gpus > 0 else "cpu"
    return "cuda:0" if chosen == "cuda" else chosen


def on_gpu(config: BatonConfig) -> bool:
    """Whether any worker of the cluster computes on a GPU."""
    return any(getattr(config.pools, role) and device(config, role) != "cpu" for role in ROLES)


def memory_fraction(config: BatonConfig, role: str) -> float:
    """Of its GPU's memory, for everything that a worker of this pool has there.

    A pool that takes half a GPU per worker gets half the memory. Where Ray does not count GPUs, all workers may find
    themselves on the same one, and divide it.
    """
    if config.engine.gpu_memory_fraction != "auto":
        return config.engine.gpu_memory_fraction
    gpus: float = getattr(config.placement, role).gpus
    workers = sum(getattr(config.pools, one) for one in ROLES)
    return SHARE * min(gpus, 1.0) if gpus else SHARE / workers


def check_devices(config: BatonConfig) -> None:
    """Raises `ConfigError` for pools that could not exchange pages."""
    kinds = {role: device(config, role).split(":")[0] for role in ROLES if getattr(config.pools, role)}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{role} on {kind}" for role, kind in kinds.items())
        raise ConfigError(
            f"Pages move only between workers on the same kind of device, but {told}: give every pool gpus, or set "
            "engine.device."
        )
