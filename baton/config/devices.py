"""The device of each pool's workers, and the share of its memory that a worker uses. Pure."""

from __future__ import annotations

from baton.config.schema import BatonConfig
from baton.protocol.errors import ConfigError

SHARE = 0.9  # Of a GPU's memory, for all its workers together; the rest is for the driver and its kernels
ROLES = ("prefill", "decode", "mixed")


def device(config: BatonConfig, role: str) -> str:
    """The device of a pool's workers: "cpu" or a name such as "cuda:0".

    With engine.device = "auto" a worker computes on a GPU if its pool takes GPUs (placement.<role>.gpus). A worker's
    process sees only the GPUs that Ray gave it, so it uses the first one.
    """
    chosen = config.engine.device
    if chosen == "auto":
        return "cuda:0" if getattr(config.placement, role).gpus > 0 else "cpu"
    return "cuda:0" if chosen == "cuda" else chosen


def on_gpu(config: BatonConfig) -> bool:
    """Whether any worker of the cluster computes on a GPU."""
    return any(getattr(config.pools, role) and device(config, role) != "cpu" for role in ROLES)


def memory_fraction(config: BatonConfig, role: str) -> float:
    """The share of its GPU's memory that a worker of this pool may use, for weights, pages and buffers.

    A pool that takes half a GPU per worker gets half the memory. If the pool takes no GPUs from Ray, all workers may be
    on the same GPU, so they divide it.
    """
    if config.engine.gpu_memory_fraction != "auto":
        return config.engine.gpu_memory_fraction
    gpus: float = getattr(config.placement, role).gpus
    workers = sum(getattr(config.pools, one) for one in ROLES)
    return SHARE * min(gpus, 1.0) if gpus else SHARE / workers


def check_devices(config: BatonConfig) -> None:
    """Raise `ConfigError` for pools on different kinds of devices, which could not exchange pages, and for ranks that
    would share a GPU, which NCCL refuses.
    """
    for role in ROLES:
        ranks, gpus = getattr(config.tensor_parallel, role), getattr(config.placement, role).gpus
        if getattr(config.pools, role) and ranks > 1 and device(config, role) != "cpu" and gpus != 1:
            raise ConfigError(
                f"tensor_parallel.{role} is {ranks}, and placement.{role}.gpus is {gpus:g}: each rank needs one GPU "
                f"to itself, so set placement.{role}.gpus = 1, with which a worker takes {ranks}."
            )
    kinds = {role: device(config, role).split(":")[0] for role in ROLES if getattr(config.pools, role)}
    if len(set(kinds.values())) > 1:
        found = ", ".join(f"{role} on {kind}" for role, kind in kinds.items())
        raise ConfigError(
            f"Pages move only between workers on the same kind of device, but {found}: give every pool gpus, or set "
            "engine.device."
        )
