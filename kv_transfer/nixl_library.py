"""Loads NIXL, after setting variables that NIXL and UCX read while they load, and loading the GPU's driver libraries.

The first transport of a process does this once, because it knows where its pages are.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from baton.kv_transfer.shared_memory import free_bytes_of
from baton.protocol.errors import ConfigError

DRIVER_LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")
# NVIDIA's container runtime puts the driver here; not every system's ld searches this folder.
DRIVER_FOLDERS = ("/usr/local/nvidia/lib64",)


def settings(on_gpu: bool, shared_memory_bytes: int) -> dict[str, str]:
    """Variables of NIXL and UCX for pages in GPU or host memory; variables set by the user take precedence.

    `shared_memory_bytes` is the free space in /dev/shm.
    """
    variables = {
        # On a CPU both would log every peer that disappears, which `poll` reports anyway. On a GPU their warnings alone
        # explain why memory cannot be registered or why a slow transport is used.
        "NIXL_LOG_LEVEL": "WARN" if on_gpu else "FATAL",
        "UCX_LOG_LEVEL": "warn" if on_gpu else "fatal",
        # Otherwise UCX waits for minutes inside `connect` for an unreachable peer.
        "UCX_TCP_CONN_NB": "y",
        # Limit of the regions of past connections that UCX keeps registered; without it they accumulate (as in vLLM).
        "UCX_RCACHE_MAX_UNRELEASED": "1024",
    }
    if on_gpu:
        # One list for all pages of a write instead of a copy per page: for scattered 2 MiB pages on an H200, 1.6 times
        # the rate in three runs of four, the same rate in the fourth.
        variables["NIXL_UCX_SGL_ENABLE"] = "1"
    # UCX takes 4.2 MiB of /dev/shm per agent, crashes with exactly 16 MiB free, and takes none with less. Other agents
    # take some too, so 16 MiB must be far away. System V shared memory has no folder that can fill up.
    if shared_memory_bytes < 64 << 20:
        variables["UCX_TLS"] = "^posix"
    return variables


def load_nixl(on_gpu: bool) -> ModuleType:
    """NIXL's Python interface, ready for pages in GPU or host memory."""
    for name, value in settings(on_gpu, free_bytes_of("/dev/shm")).items():
        os.environ.setdefault(name, value)
    if on_gpu:
        load_libraries(DRIVER_LIBRARIES, DRIVER_FOLDERS)
    return importlib.import_module("nixl._api")


def load_libraries(names: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    """Load each library for the whole process; returns the errors by name of those that cannot be loaded.

    A library that ld does not find is searched for in `folders`. Libraries that need a loaded one find it by its name;
    LD_LIBRARY_PATH can no longer be changed at this point.
    """
    failed = {}
    for name in names:
        for path in (name, *(f"{folder}/{name}" for folder in folders if Path(folder, name).exists())):
            try:
                ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                failed[name] = str(error)
            else:
                failed.pop(name, None)
                break
    return failed


def registration_error(reason: str, on_gpu: bool, num_bytes: int, nixl: ModuleType) -> ConfigError:
    """The error for pages that NIXL cannot register, with advice; `nixl` is its Python interface."""
    size = f"{num_bytes / (1 << 30):.1f} GiB"
    if not on_gpu:
        return ConfigError(f"NIXL cannot register {size} of host memory ({reason}): raise the limit of `ulimit -l`.")
    failed, needed = load_libraries(DRIVER_LIBRARIES, DRIVER_FOLDERS), " and ".join(DRIVER_LIBRARIES)
    # These variables help when UCX does not find its CUDA module or prefers another transport.
    interface = Path(nixl.__file__ or "")
    modules = interface.parent.parent / f"{interface.parent.name}.libs" / "ucx"
    second_try = f"UCX_TLS=cuda_copy,cuda_ipc,sm,tcp,self and UCX_MODULE_DIR={modules}"
    if failed:
        return ConfigError(
            f"NIXL cannot register {size} of GPU memory ({reason}), because {' and '.join(failed)} of NVIDIA's driver "
            f"cannot be loaded ({'; '.join(failed.values())}): put the folder that has {needed} into LD_LIBRARY_PATH, "
            f"then, if that is not enough, set {second_try}."
        )
    return ConfigError(
        f"NIXL cannot register {size} of GPU memory ({reason}), although {needed} are loaded: "
        f"read the warnings of NIXL and UCX above, and set {second_try} for the worker."
    )
