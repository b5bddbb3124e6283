"""The rate of pages between workers, and when it is too slow. Pure."""

from __future__ import annotations

LARGE_BYTES = 64 << 20
"""A write of this size measures the rate of a link.

Besides its bytes, a write's time has its preparation and the delay until the loop notices its end: 2 ms at most as a
rule. With 64 MiB that makes no link of 50 GB/s or more (PCIe 5, NVLink) look slower than `SLOW_BYTES_S`.
"""
SLOW_BYTES_S = 20e9  # CUDA IPC has more even over PCIe; TCP and copies through the host have less


def slow_link(source: str, target: str, bytes_per_s: float, gpus_of_one_host: bool) -> str:
    """One sentence on what is wrong with a link and what to do; empty for a good link.

    Only links between two GPUs of one host are judged: the rate to expect of a network or a CPU is unknown here.
    """
    if not gpus_of_one_host or bytes_per_s >= SLOW_BYTES_S:
        return ""
    return (
        f"Pages go from {source} to {target} at {bytes_per_s / 1e9:.1f} GB/s, below {SLOW_BYTES_S / 1e9:.0f} GB/s "
        "between two GPUs of one host: start both pools with UCX_TLS=cuda_copy,cuda_ipc,sm,tcp,self, and with "
        "UCX_PROTO_INFO=y to see in their logs what UCX uses instead of CUDA IPC."
    )
