"""What this machine offers: the facts `cluster/resolve.py` works from."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from cluster.resolve import MachineFacts


def machine_facts() -> MachineFacts:
    """Cores this process may use, memory that is free, and whether bfloat16 is fast here."""
    return MachineFacts(
        cores=len(os.sched_getaffinity(0)),
        memory_available_bytes=psutil.virtual_memory().available,
        fast_bfloat16=_fast_bfloat16(),
    )


def _fast_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
