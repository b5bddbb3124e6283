"""Free space in the folder of shared memory."""

from __future__ import annotations

import shutil


def free_bytes_of(folder: str) -> int:
    """Bytes free for a file in `folder`; 0 if it does not exist."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
