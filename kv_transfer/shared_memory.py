"""How much the folder of shared memory has left."""

from __future__ import annotations

import shutil


def free_bytes_of(folder: str) -> int:
    """Bytes that a file there could still have; 0 where there is no such folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
