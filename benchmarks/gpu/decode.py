"""Decode step time against its lower bound: reading weights and KV once, at the bandwidth of a copy in the same run."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch

from baton.engine.batch import StepBudget
from baton.engine.graph_sizes import padded_size
from baton.engine.model_config import ModelConfig
from baton.protocol.worker import PageLayout
from benchmarks.gpu.device import Device, build_executor, build_model, prepare
from benchmarks.gpu.figures import COPY, EXPECTED, decode_figures, graph_figures, sampled_figures, turn_figure
from benchmarks.gpu.part import Part
from benchmarks.gpu.sequences import Turn, decoding, pages_for, turn
from benchmarks.gpu.sizes import GIB, Sizes, label, point_name

WARM_STEPS = 5
SAMPLED = {"temperature": 1.0, "top_p": 0.9}
USABLE_SHARE = 0.85  # Share of the memory free beside the weights; the rest is for workspaces and graphs.


def pages_of(point: tuple[int, int], sizes: Sizes) -> int:
    """Pages for the sequences of a point, with room for the measured steps."""
    batch, context = point
    return batch * pages_for(context + sizes.repeats + WARM_STEPS + 1, sizes.page_size)


def run(part: Part) -> None:
    """Measure the bandwidth, every point that fits, and variants of some points."""
    sizes, device = part.sizes, prepare(part.options.device)
    part.result.facts = device.facts()
    bandwidth = 0.0

    def copy() -> dict[str, float]:
        nonlocal bandwidth
        bandwidth = device.bytes_per_s(sizes.copy_bytes)
        return {COPY: bandwidth / 1e9}

    if not part.step("the copy bandwidth", EXPECTED["decode"](sizes), copy):
        return
    part.say("building the model")
    config, parameters = build_model(sizes.model, sizes.dtype, device, part.options.seed)
    fitting = fitting_points(part, config, device)
    layout = layout_of(config, sizes, fitting)
    part.say(f"building the executor, {layout.num_pages * layout.page_bytes / GIB:.1f} GiB of pages")
    most = max(batch for batch, _ in fitting)
    executor = build_executor(device, config, parameters, layout, most, sizes.longest)
    for point in fitting:

        def measure(point: tuple[int, int] = point) -> dict[str, float]:
            steps = decode_steps(executor, point, sizes, part.options.seed)
            step_s, floor_s = median(step.seconds for step in steps), floor(executor, steps, bandwidth)
            part.result.details[point_name(point)] = {
                **stages_ms(steps),
                "floor_ms": 1000 * floor_s,
                "replay_ms": replay_ms(device, executor, point[0]),
            }
            return dict(zip(decode_figures(point), (step_s / floor_s, 1000 * step_s), strict=True))

        part.step(f"batch {point[0]}, context {label(point[1])}", decode_figures(point), measure)
    sampled(part, executor)
    turns(part, executor)
    without_graphs(part, device, config, parameters)


def sampled(part: Part, executor: Any) -> None:
    """Measure one point with sampling parameters that most clients use."""
    sizes, point = part.sizes, part.sizes.sampled_point
    figures = sampled_figures(sizes)
    greedy_ms = part.result.figures.get(decode_figures(point)[1])
    if greedy_ms is None:
        part.skip(figures, f"{point_name(point)} was not measured")
        return

    def measure() -> dict[str, float]:
        steps = decode_steps(executor, point, sizes, part.options.seed, **SAMPLED)
        part.result.details[figures[0]] = stages_ms(steps)
        step_ms = 1000 * median(step.seconds for step in steps)
        return dict(zip(figures, (step_ms, step_ms / greedy_ms), strict=True))

    part.step(f"{point_name(point)}, temperature 1, top_p 0.9", figures, measure)


def turns(part: Part, executor: Any) -> None:
    """Measure steps of a whole worker, from its role to the frames for its router."""
    for point in part.sizes.turn_points:
        figure = turn_figure(point)
        if decode_figures(point)[1] not in part.result.figures:
            part.skip([figure], f"{point_name(point)} was not measured")
            continue

        def measure(point: tuple[int, int] = point, figure: str = figure) -> dict[str, float]:
            from benchmarks.gpu.worker_turns import worker_turns  # Needs ZeroMQ, which a host may lack.

            return {figure: 1000 * median(worker_turns(executor, point, part.sizes.repeats, part.options.seed))}

        part.step(f"{point_name(point)} through a whole worker", [figure], measure)


def fitting_points(part: Part, config: ModelConfig, device: Device) -> list[tuple[int, int]]:
    """The points whose KV fits; the others are skipped, with the reason."""
    sizes = part.sizes
    page_bytes = config.page_layout(1, sizes.page_size, sizes.dtype, "random").page_bytes
    free = device.free_bytes()
    room = sizes.most_kv_bytes if free is None else min(sizes.most_kv_bytes, int(USABLE_SHARE * free))
    fitting = []
    for point in sizes.decode_points:
        wanted = pages_of(point, sizes) * page_bytes
        if wanted <= room:
            fitting.append(point)
            continue
        why = f"its KV takes {wanted / GIB:.3g} GiB, there is room for {room / GIB:.3g}"
        part.skip(decode_figures(point), why)
    return fitting


def layout_of(config: ModelConfig, sizes: Sizes, points: list[tuple[int, int]]) -> PageLayout:
    """Pages for the largest of the points."""
    num_pages = max(pages_of(point, sizes) for point in points) + 1
    return config.page_layout(num_pages, sizes.page_size, sizes.dtype, "random")


def decode_steps(executor: Any, point: tuple[int, int], sizes: Sizes, seed: int, **sampling: Any) -> list[Turn]:
    """Consecutive steps of a batch; the middle one reads `context` positions per sequence."""
    batch, context = point
    first = max(1, context - sizes.repeats // 2 - WARM_STEPS)
    room = sizes.repeats + WARM_STEPS
    sequences = decoding(executor.layout, executor.config.vocab_size, batch, first, room, seed, **sampling)
    budget = StepBudget(max(sizes.longest, batch), batch)
    return [turn(executor, sequences, budget) for _ in range(room)][WARM_STEPS:]


def floor(executor: Any, steps: list[Turn], bandwidth: float) -> float:
    """Seconds for reading every matrix and the KV once."""
    weights = sum(matrix.numel() * matrix.element_size() for matrix in executor.model.matrices)
    positions = median(step.context_tokens for step in steps)
    return (weights + positions * executor.layout.page_bytes / executor.layout.page_size) / bandwidth


def stages_ms(steps: list[Turn]) -> dict[str, float]:
    """Median milliseconds of a step's stages on the host."""
    stages = ("plan_s", "launch_s", "collect_s", "absorb_s")
    return {f"{stage[:-2]}_ms": 1000 * median(getattr(step, stage) for step in steps) for stage in stages}


@torch.inference_mode()
def replay_ms(device: Device, executor: Any, batch: int) -> float | None:
    """Milliseconds of a recorded step, replayed back to back, without work on the host; None without graphs."""
    graphs: Any = getattr(executor, "_graphs", None)
    if graphs is None:
        return None
    step = graphs._steps[padded_size(batch, sorted(graphs._steps))]
    return 1000 * device.median_s(step.replay, 3, 10)


def without_graphs(part: Part, device: Device, config: ModelConfig, parameters: Any) -> None:
    """Measure one point with separate launches of every kernel."""
    sizes, point = part.sizes, part.sizes.graphs_point
    figures = graph_figures(sizes)
    with_graphs_ms = part.result.figures.get(decode_figures(point)[1])
    if with_graphs_ms is None:
        part.skip(figures, f"{point_name(point)} was not measured with graphs")
        return

    def measure() -> dict[str, float]:
        layout = layout_of(config, sizes, [point])
        plain = build_executor(device, config, parameters, layout, point[0], sizes.longest, graphs=False)
        steps = decode_steps(plain, point, sizes, part.options.seed)
        part.result.details[f"{point_name(point)}_without_graphs"] = stages_ms(steps)
        step_s = median(step.seconds for step in steps)
        return {figures[0]: 1000 * step_s, figures[1]: with_graphs_ms / (1000 * step_s)}

    part.step(f"batch {point[0]}, context {label(point[1])}, without graphs", figures, measure)
    if not device.on_gpu:
        part.note("There are no graphs on a CPU: with and without are the same.")
