"""Finds problems for the other parts within 20 seconds: software, compilers, kernels, and one write over NIXL.

The checks are independent; each adds a note with its findings.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from baton.engine.attention.flashinfer import load_flashinfer
from baton.kv_transfer.nixl_library import DRIVER_LIBRARIES
from baton.protocol.link_rate import SLOW_BYTES_S
from baton.protocol.worker import PageLayout
from benchmarks.gpu.device import Device, prepare
from benchmarks.gpu.figures import PREFLIGHT
from benchmarks.gpu.part import Part
from benchmarks.gpu.sizes import MIB

PACKAGES = (
    *("torch", "triton", "transformers", "flashinfer-python", "apache-tvm-ffi", "nixl", "nixl-cu13", "nixl-cu12"),
    *("grpcio", "grpcio-health-checking", "protobuf", "pyzmq"),
)
HEADERS = ("cuda_runtime.h", "cublasLt.h", "curand_kernel.h")  # Headers that FlashInfer's sources include.
SERVING = ("zmq", "pydantic", "grpc_health.v1.health_pb2_grpc", "grpc_reflection.v1alpha.reflection")
SERVING_OURS = ("baton.router.build", "baton.worker.build")
WRITES = 3
WRITTEN_BYTES = {"cuda": 64 * MIB, "cpu": 4 * MIB}
SECOND_TRY = "try again with UCX_TLS=cuda_copy,cuda_ipc,sm,tcp,self and UCX_MODULE_DIR at nixl_cu13.libs/ucx"


def run(part: Part) -> None:
    """Run every check."""
    device = prepare(part.options.device)
    part.result.facts = device.facts()
    checks: dict[str, Callable[[], str]] = {
        "host": host,
        "versions": versions,
        "serving's libraries": serving,
    }
    if device.on_gpu:
        checks |= {
            "driver libraries": driver_libraries,
            "compilers": compilers,
            "torch on the GPU": gpu,
            "FlashInfer's kernels": kernels,
        }
    for what, check in checks.items():

        def noted(what: str = what, check: Callable[[], str] = check) -> dict[str, float]:
            found = check()
            part.say(f"  {found}")
            part.note(f"{what}: {found}")
            return {}

        part.step(what, [], noted)
    part.step("a write between two processes over NIXL", [PREFLIGHT], lambda: {PREFLIGHT: write_gb_per_s(part, device)})


def host() -> str:
    """Python, cores and free memory of the host."""
    memory = psutil.virtual_memory()
    room = {place: shutil.disk_usage(place).free >> 30 for place in ("/dev/shm", "/tmp") if Path(place).is_dir()}
    return (
        f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, {memory.available >> 30} of {memory.total >> 30} "
        f"GiB of memory free, GiB free in {room}"
    )


def versions() -> str:
    """Versions of the packages, "-" for missing ones."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "-"
    return ", ".join(f"{name} {version}" for name, version in found.items())


def serving() -> str:
    """Import the modules of router and worker processes; raises `ImportError` for a missing one."""
    started = time.monotonic()
    for name in (*SERVING, *SERVING_OURS):
        importlib.import_module(name)
    return f"imported in {time.monotonic() - started:.1f} s"


def driver_libraries() -> str:
    """Load the driver's libraries, without which UCX has no transport for GPU memory; raises `OSError`."""
    for name in DRIVER_LIBRARIES:
        ctypes.CDLL(name)
    return " and ".join(DRIVER_LIBRARIES) + " are loaded"


def compilers() -> str:
    """The compilers for FlashInfer's kernels; missing ones are not a failure, because kernels may be prebuilt."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", str(Path(nvcc).parents[1]) if nvcc else ""]
    headers = {name: any(Path(home, "include", name).is_file() for home in homes if home) for name in HEADERS}
    missing = [name for name, there in headers.items() if not there]
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append("Python.h")  # For Triton's kernel launchers.
    tools = ", ".join(f"{name} {shutil.which(name) or 'not found'}" for name in ("nvcc", "ninja", "g++", "gcc"))
    return f"{tools}; headers missing: {', '.join(missing) or 'none'}"


def gpu() -> str:
    """Run a matrix product with torch on the GPU; returns facts about the GPU."""
    left = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    torch.mm(left, left)
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    exchange = any(hasattr(torch.Tensor, name) for name in ("__dlpack_c_exchange_api__", "__c_dlpack_exchange_api__"))
    return (
        f"{torch.cuda.get_device_name(0)}, {free >> 30} of {total >> 30} GiB free, DLPack exchange {exchange}, "
        f"PYTORCH_CUDA_ALLOC_CONF {os.environ.get('PYTORCH_CUDA_ALLOC_CONF', 'not set')}"
    )


def kernels() -> str:
    """Compare one fused kernel with torch; raises `ValueError` when the results differ."""
    from baton.engine.models.cuda_layers import rms_norm

    library = load_flashinfer()
    prebuilt = sorted(path.name for path in Path(library.__file__).parent.glob("data/aot/*"))
    x = torch.randn(4, 1024, device="cuda", dtype=torch.bfloat16)
    weight = torch.ones(1024, device="cuda", dtype=torch.bfloat16)
    started = time.monotonic()
    out = rms_norm(x, weight, 1e-5)
    torch.cuda.synchronize()
    seconds = time.monotonic() - started
    wanted = torch.nn.functional.rms_norm(x.float(), (1024,), None, 1e-5)
    error = float((out.float() - wanted).norm() / wanted.norm())
    if not error < 1e-2:
        raise ValueError(f"FlashInfer's rmsnorm differs from torch's by {error:.3g}.")
    return f"flashinfer {library.__version__}, the first call took {seconds:.1f} s, prebuilt: {prebuilt or 'none'}"


def write_gb_per_s(part: Part, device: Device) -> float:
    """The rate of pages written to another process on the same device; raises `ValueError` when they differ there."""
    from baton.kv_transfer.nixl import NixlTransport
    from benchmarks.gpu.peer import Peer, handshake, page_receiver, page_sums
    from benchmarks.handoff import Sender

    num_pages = WRITTEN_BYTES[device.name] // (2 * MIB)
    layout = PageLayout(num_pages, 32, 16, 8, 128, "bfloat16", "preflight")
    with Peer(page_receiver, (device.name, layout)) as peer:
        pages = torch.empty(layout.shape, dtype=torch.bfloat16, device=device.name).normal_()
        device.synchronize()
        transport = NixlTransport(pages, layout, "sender:1")
        handshake(transport, peer, peer.answer(60), device)
        everything = list(range(num_pages))
        sender = Sender(transport, "receiver:1", pages, num_pages)
        seconds = min(sender.path(everything, everything) for _ in range(WRITES))
        _, sums = peer.ask(everything, 20)
        transport.close()
    if sums != page_sums(pages, everything):
        raise ValueError("The pages at the target are not those of the source.")
    rate = num_pages * layout.page_bytes / seconds / 1e9
    if device.on_gpu and 1e9 * rate < SLOW_BYTES_S:
        part.note(f"{rate:.2f} GB/s is not CUDA IPC: {SECOND_TRY}.")
    return rate
