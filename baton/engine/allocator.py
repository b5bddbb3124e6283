"""Keeps freed memory in the process, so that a step's temporaries are reused without a page fault per 4 KiB."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 32 << 20  # glibc refuses a larger mmap threshold.


def keep_freed_memory() -> bool:
    """Make glibc's malloc serve large blocks from its heap and keep that heap; returns False without glibc."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, 1 << 30))
