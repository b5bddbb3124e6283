"""Judges the rate of a link between workers. Pure."""

from __future__ import annotations

LARGE_BYTES = 64 << 20
"""Minimum size of a write that measures the rate of a link.

The measured time includes the preparation of the write and the delay until the loop notices its end, usually up to 2
ms. With 64 MiB even then a link of 50 GB/s (PCIe 5, NVLink) measures faster than `SLOW_BYTES_S`.
"""
SLOW_BYTES_S = 20e9  # CUDA IPC is faster even over PCIe; TCP and copies through the host are slower


def slow_link(source: str, target: str, bytes_per_s: float, gpus_of_one_host: bool) -> str:
    """A sentence on a slow link and what to do about it; "" for a good link.

    Only links between two GPUs of one host are judged, because the expected rate of a network or CPU is unknown.
    """
    if not gpus_of_one_host or bytes_per_s >= SLOW_BYTES_S:
        return ""
    return (
        f"Pages go from {source} to {target} at {bytes_per_s / 1e9:.1f} GB/s, below {SLOW_BYTES_S / 1e9:.0f} GB/s "
        "between two GPUs of one host: start both pools with UCX_TLS=cuda_copy,cuda_ipc,sm,tcp,self, and with "
        "UCX_PROTO_INFO=y to log what UCX uses instead of CUDA IPC."
    )
