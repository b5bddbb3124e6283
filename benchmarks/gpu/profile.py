"""Where a step's time goes on the device, kernel by kernel: for the JSON. Run only when it is asked for.

Profiling replays of steps that were recorded before has been seen to hang, so it comes in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu.device import Device, build_executor, build_model, prepare
from benchmarks.gpu.part import Part
from benchmarks.gpu.sequences import decoding, pages_for, prefilling, turn
from benchmarks.gpu.sizes import label, point_name
from engine.batch import StepBudget

CALLS = 3
MOST_BATCH = 256  # the tiny shape has a point that fits nowhere
KERNELS = 20
NAME_CHARS = 120


def run(part: Part) -> None:
    sizes, device, seed = part.sizes, prepare(part.options.device), part.options.seed
    part.result.facts = device.facts()
    part.say("building the model")
    config, parameters = build_model(sizes.model, sizes.dtype, device, seed)
    prompt, room = max(sizes.prompts), 4 * CALLS
    points = [point for point in sizes.decode_points if point[0] <= MOST_BATCH]
    batch = max(point[0] for point in points)
    num_pages = max(count * pages_for(context + room + 1, sizes.page_size) for count, context in points)
    num_pages = max(num_pages, pages_for(prompt + 1, sizes.page_size))
    layout = config.page_layout(num_pages, sizes.page_size, sizes.dtype, "random")
    executor = build_executor(device, config, parameters, layout, batch, prompt, kernels=part.options.kernels)
    (plan,) = prefilling(layout, config.vocab_size, prompt, seed)
    calls: dict[str, Callable[[], object]] = {f"prefill_{label(prompt)}": lambda: executor.execute(plan)}
    for point in points:
        sequences = decoding(layout, config.vocab_size, *point, room, seed)
        budget = StepBudget(max(sizes.longest, point[0]), point[0])
        calls[f"decode_{point_name(point)}"] = partial(turn, executor, sequences, budget)
    for name, call in calls.items():

        def measure(name: str = name, call: Callable[[], object] = call) -> dict[str, float]:
            part.result.details[f"profile_{name}"] = top_kernels(device, call)
            return {}

        part.step(f"profile of {name}", [], measure)


def top_kernels(device: Device, call: Callable[[], object]) -> list[dict[str, Any]]:
    """The kernels that take most of `call`, with milliseconds and launches per call."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    activity = ProfilerActivity.CUDA if device.on_gpu else ProfilerActivity.CPU
    call()
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
