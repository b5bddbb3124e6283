"""Profiles steps kernel by kernel, for the JSON file. Runs only if it is named.

The profiler can hang on replays of steps that were recorded before it started, so this part is the last one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from baton.engine.attention.device_backends import device_backend
from baton.engine.batch import StepBudget, absorb_step, plan_step
from baton.engine.graph_sizes import graph_sizes
from baton.engine.sampler import read, sample_on_device
from baton.engine.sequence import Sequence
from baton.engine.step import StepResult
from baton.engine.step_arrays import step_arrays
from benchmarks.gpu.device import Device, build_executor, build_model, prepare
from benchmarks.gpu.part import Part
from benchmarks.gpu.sequences import decoding, pages_for, prefilling, turn
from benchmarks.gpu.sizes import MIB, label, point_name

CALLS = 3
HOST_STEPS = 30
MOST_BATCH = 256  # The tiny shape has a point that does not fit anywhere.
KERNELS = 20
NAME_CHARS = 120


def run(part: Part) -> None:
    """Profile a prefill step and decode steps, the host's share of them, and the memory of recorded steps."""
    sizes, device, seed = part.sizes, prepare(part.options.device), part.options.seed
    part.result.facts = device.facts()
    part.say("building the model")
    config, parameters = build_model(sizes.model, sizes.dtype, device, seed)
    prompt, room = max(sizes.prompts), HOST_STEPS
    points = [point for point in sizes.decode_points if point[0] <= MOST_BATCH]
    batch = max(point[0] for point in points)
    num_pages = max(count * pages_for(context + room + 1, sizes.page_size) for count, context in points)
    num_pages = max(num_pages, pages_for(prompt + 1, sizes.page_size))
    layout = config.page_layout(num_pages, sizes.page_size, sizes.dtype, "random")
    executor = build_executor(device, config, parameters, layout, batch, prompt, kernels=part.kernels)
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
    if device.on_gpu:
        for point in points:
            sequences = decoding(layout, config.vocab_size, *point, HOST_STEPS, seed)
            budget = StepBudget(max(sizes.longest, point[0]), point[0])

            def stages(
                name: str = point_name(point), sequences: list[Sequence] = sequences, budget: StepBudget = budget
            ) -> dict[str, float]:
                with torch.inference_mode():
                    part.result.details[f"host_{name}"] = host_stages(executor, sequences, budget)
                return {}

            part.step(f"the host's share of {point_name(point)}", [], stages)
        part.step("memory of recorded steps", [], lambda: graph_memory(part, executor, batch))


def top_kernels(device: Device, call: Callable[[], object]) -> list[dict[str, Any]]:
    """The kernels with the largest share of `call`, with milliseconds and launches per call."""
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


def host_stages(executor: Any, sequences: list[Sequence], budget: StepBudget) -> dict[str, float]:
    """Median milliseconds of each stage of the host's work for a recorded decode step."""
    graphs, taken = executor._graphs, []
    for _ in range(HOST_STEPS):
        marks = [("", time.perf_counter())]

        def mark(name: str, marks: list[tuple[str, float]] = marks) -> None:
            marks.append((name, time.perf_counter()))

        plan = plan_step(sequences, (), budget)
        assert plan is not None
        mark("plan")
        token_ids, _, layout = step_arrays(plan, executor.layout.page_size).tensors()
        mark("flat_batch")
        size, metadata = graphs._staging.put(token_ids, layout)
        mark("staging")
        step = graphs._steps[size]
        step.attention.plan_staged(metadata)
        mark("attention_plan")
        step.replay()
        mark("replay")
        drawn = sample_on_device(graphs._logits[: len(sequences)], plan.sampling, frozenset())
        mark("draw")
        fetched = drawn.fetch()
        mark("fetch")
        torch.cuda.synchronize()
        mark("wait")
        absorb_step(plan, StepResult(read(fetched)))
        mark("absorb")
        taken.append({name: 1000 * (end - begin) for (_, begin), (name, end) in itertools.pairwise(marks)})
    return {name: median(one[name] for one in taken) for name in taken[0]}


def graph_memory(part: Part, executor: Any, batch: int) -> dict[str, float]:
    """Note the GPU memory of recorded decode steps, without the buffers that all of them share."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info()[0]
    record = device_backend(executor.pages.dtype, executor.layout.head_dim).record
    assert record is not None
    graphs = executor._record(record(executor._attention), batch, None)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    taken = before - torch.cuda.mem_get_info()[0] - graphs._logits.nbytes
    count = len(graph_sizes(batch))
    part.note(f"{count} recorded steps take {taken / MIB:.0f} MiB of the GPU, {taken / count / MIB:.1f} MiB each.")
    return {}
