"""The device: timing, peak rates, and the executor that runs on it."""

from __future__ import annotations

import importlib.metadata
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from baton.engine.executor import DTYPES, TorchExecutor
from baton.engine.kernel_compiler import let_flashinfer_compile
from baton.engine.model_config import ModelConfig, model_config
from baton.harness.random_weights import random_weights
from baton.protocol.worker import PageLayout

WARM_UPS = 3


@dataclass(frozen=True, slots=True)
class Device:
    """ "cuda" or "cpu"; the same calls time both."""

    name: str

    @property
    def on_gpu(self) -> bool:
        return self.name == "cuda"

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], count: int = 1) -> float:
        """Seconds per call of `count` consecutive calls."""
        self.synchronize()
        started = time.perf_counter()
        for _ in range(count):
            call()
        self.synchronize()
        return (time.perf_counter() - started) / count

    def median_s(self, call: Callable[[], object], rounds: int, count: int = 1) -> float:
        """The median seconds per call over `rounds`, after a warm-up."""
        for _ in range(WARM_UPS):
            call()
        return median(self.seconds(call, count) for _ in range(rounds))

    def bytes_per_s(self, num_bytes: int) -> float:
        """Peak memory bandwidth: a large copy inside the device, counting bytes read and bytes written."""
        source = torch.empty(num_bytes // 2, dtype=torch.bfloat16, device=self.name).normal_()
        target = torch.empty_like(source)
        return 2 * num_bytes / self.median_s(lambda: target.copy_(source), 7, 3)

    def flops_per_s(self, size: int, dtype: torch.dtype) -> float:
        """The rate of a large square matrix product of random numbers."""
        left, right = (torch.empty(size, size, dtype=dtype, device=self.name).normal_() for _ in range(2))
        out = torch.empty_like(left)
        return 2 * size**3 / self.median_s(lambda: torch.mm(left, right, out=out), 7, 5)

    def free_bytes(self) -> int | None:
        """Free memory of the GPU; None on a CPU."""
        return torch.cuda.mem_get_info()[0] if self.on_gpu else None

    def facts(self) -> dict[str, Any]:
        """The hardware and software of the device, for the setting."""
        facts: dict[str, Any] = {"device": self.name, "torch": torch.__version__}
        for package in ("flashinfer-python", "nixl", "transformers"):
            try:
                facts[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                facts[package] = "not installed"
        if self.on_gpu:
            properties = torch.cuda.get_device_properties(0)
            facts["gpu"] = properties.name
            facts["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
            facts["compute_capability"] = f"{properties.major}.{properties.minor}"
            facts["cuda"] = str(torch.version.cuda)
            facts["driver"] = _driver()
        return facts


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def prepare(name: str) -> Device:
    """The device, ready for use; raises `RuntimeError` when it does not exist.

    On the CPU one thread computes, as in a worker.
    """
    torch.set_num_threads(1)
    if name == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device here.")
        let_flashinfer_compile(torch.cuda.get_device_capability())
    return Device(name)


def build_model(
    raw: dict[str, Any], dtype: str, device: Device, seed: int
) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """A configuration and random weights in its shape."""
    config = model_config(raw)
    return config, random_weights(config, DTYPES[dtype], device.name, seed)


def build_executor(
    device: Device,
    config: ModelConfig,
    parameters: dict[str, torch.Tensor],
    layout: PageLayout,
    max_batch: int,
    max_tokens: int,
    graphs: bool = True,
    kernels: str = "fa2",
) -> Any:
    """The executor for this device, warmed up, with random numbers in its pages, because zeros would hide errors."""
    if device.on_gpu:
        from baton.engine.cuda_executor import CudaExecutor, CudaOptions

        options = CudaOptions(cuda_graphs=graphs, attention=kernels, max_batch=max_batch, max_tokens=max_tokens)
        executor: Any = CudaExecutor(config, parameters, layout, options=options)
    else:
        executor = TorchExecutor(config, parameters, layout)
    executor.warm_up()
    executor.pages.normal_()
    return executor


def attention_over(device: Device, pages: torch.Tensor, num_heads: int, kernels: str = "fa2") -> Any:
    """The attention backend for this device."""
    if device.on_gpu:
        from baton.engine.attention.flashinfer import FlashInferAttention

        return FlashInferAttention(pages, num_heads, kernels)
    from baton.engine.attention.torch_cpu import TorchAttention

    return TorchAttention(pages, num_heads)
