"""Accelerators by their data sheets: what the simulator's timing is made from."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Peak figures of one device: dense rates, memory and its bandwidth, links."""

    name: str
    flops: float  # per second, of bfloat16
    fp8_flops: float  # the same of FP8: that of bfloat16 where there are no such tensor cores, as weights are widened
    bandwidth_bytes_s: float
    memory_bytes: int
    host_bandwidth_bytes_s: float  # to and from the host's memory, one direction
    link_bandwidth_bytes_s: float  # to the other devices of its node, one direction


GB = 10**9
ACCELERATORS = {
    one.name: one
    for one in (
        # NVIDIA's data sheets, without sparsity; the host is reached over PCIe x16 of generation 5 or 4,
        # other devices over NVLink, or over PCIe.
        Accelerator("h200", 989e12, 1979e12, 4.8e12, 141 * GB, 64e9, 450e9),
        Accelerator("h100", 989e12, 1979e12, 3.35e12, 80 * GB, 64e9, 450e9),
        Accelerator("a100", 312e12, 312e12, 2.039e12, 80 * GB, 32e9, 300e9),
        Accelerator("a40", 149.7e12, 149.7e12, 0.696e12, 48 * GB, 32e9, 56e9),
        Accelerator("l40s", 362e12, 733e12, 0.864e12, 48 * GB, 32e9, 32e9),
    )
}


def accelerator(name: str) -> Accelerator:
    """The accelerator of that name; raises `ConfigError` listing the known ones."""
    found = ACCELERATORS.get(name.lower())
    if found is None:
        raise ConfigError(f"There is no data sheet for {name!r}; known are {', '.join(ACCELERATORS)}.")
    return found
