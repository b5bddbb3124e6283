"""This machine's resources, from which `baton/config/resolve.py` resolves "auto"."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from baton.config.facts import MachineFacts
from baton.deploy.container_limits import cpu_quota, memory_limit


def machine_facts() -> MachineFacts:
    """Cores and memory that this process may use, a container's limits included, and whether bfloat16 is fast here."""
    cores, free_bytes = len(os.sched_getaffinity(0)), psutil.virtual_memory().available
    quota, limit = cpu_quota(), memory_limit()
    limited = limit is not None and limit.free_bytes < free_bytes
    return MachineFacts(
        cores=cores if quota is None else max(1, min(cores, int(quota))),
        memory_available_bytes=limit.free_bytes if limit and limited else free_bytes,
        fast_bfloat16=_fast_bfloat16(),
        memory_limit_bytes=limit.limit_bytes if limit and limited else 0,
        all_workers_here=not os.environ.get("RAY_ADDRESS"),  # `baton up` reads it the same way.
    )


def _fast_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
