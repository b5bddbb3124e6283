"""Where a step's time goes on the device, kernel by kernel: for the JSON, never in the way of a figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.gpu.device import Device
from benchmarks.gpu.part import Part

CALLS = 3
KERNELS = 15
NAME_CHARS = 120


def profile(part: Part, device: Device, name: str, call: Callable[[], object]) -> None:
    """Write the kernels that take most of `call` into the part's details; what fails is noted and nothing more."""
    part.say(f"profile of {name}")
    try:
        part.result.details[f"profile_{name}"] = top_kernels(device, call)
    except Exception as error:  # noqa: BLE001 - a profiler may be refused; the figures are there without it
        part.note(f"No profile of {name}: {type(error).__name__}: {error}")
    part.save()


def top_kernels(device: Device, call: Callable[[], object]) -> list[dict[str, Any]]:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    activity = ProfilerActivity.CUDA if device.on_gpu else ProfilerActivity.CPU
    with torch_profile(activities=[activity]) as profiler:
        for _ in range(CALLS):
            call()
        device.synchronize()
    key = "self_device_time_total" if device.on_gpu else "self_cpu_time_total"
    found = sorted(profiler.key_averages(), key=lambda event: (-getattr(event, key), event.key))
    return [
        {"kernel": event.key[:NAME_CHARS], "ms": getattr(event, key) / 1000 / CALLS, "calls": event.count / CALLS}
        for event in found[:KERNELS]
    ]
