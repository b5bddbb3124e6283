"""Decode step time against the floor: the bytes of weights and KV once, at the rate of a copy in the same run."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.gpu.device import Device, build_executor, build_model, prepare
from benchmarks.gpu.figures import COPY, DECODE_GOAL_UP_TO_BATCH, EXPECTED, decode_figures, graph_figures, point_name
from benchmarks.gpu.part import Part
from benchmarks.gpu.profile import profile
from benchmarks.gpu.sequences import Turn, decoding, pages_for, turn
from benchmarks.gpu.sizes import GIB, Sizes, label
from cluster.worker import PageLayout
from engine.batch import StepBudget
from engine.model_config import ModelConfig

WARM_STEPS = 5
USABLE_SHARE = 0.85  # of the memory that is free beside the weights: the rest is for workspaces and graphs


def pages_of(point: tuple[int, int], sizes: Sizes) -> int:
    """Pages that a point takes, with room for the steps that are measured."""
    batch, context = point
    return batch * pages_for(context + sizes.repeats + WARM_STEPS + 1, sizes.page_size)


def run(part: Part) -> None:
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
            part.result.details[point_name(point)] = {**stages_ms(steps), "floor_ms": 1000 * floor_s}
            return dict(zip(decode_figures(point), (step_s / floor_s, 1000 * step_s), strict=True))

        part.step(f"batch {point[0]}, context {label(point[1])}", decode_figures(point), measure)
    if fitting:
        batch, context = max(point for point in fitting if point[0] <= DECODE_GOAL_UP_TO_BATCH)
        sequences = decoding(layout, config.vocab_size, batch, context, 8, part.options.seed)
        budget = StepBudget(max(sizes.longest, batch), batch)
        profile(part, device, f"decode_{point_name((batch, context))}", lambda: turn(executor, sequences, budget))
    without_graphs(part, device, config, parameters)


def fitting_points(part: Part, config: ModelConfig, device: Device) -> list[tuple[int, int]]:
    """The points whose KV has room; the others are skipped, with the reason."""
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
    num_pages = max(pages_of(point, sizes) for point in points) + 1
    return config.page_layout(num_pages, sizes.page_size, sizes.dtype, "random")


def decode_steps(executor: Any, point: tuple[int, int], sizes: Sizes, seed: int) -> list[Turn]:
    """Consecutive steps of a batch, of which the middle one reads `context` positions per sequence."""
    batch, context = point
    first = max(1, context - sizes.repeats // 2 - WARM_STEPS)
    room = sizes.repeats + WARM_STEPS
    sequences = decoding(executor.layout, executor.config.vocab_size, batch, first, room, seed)
    budget = StepBudget(max(sizes.longest, batch), batch)
    return [turn(executor, sequences, budget) for _ in range(room)][WARM_STEPS:]


def floor(executor: Any, steps: list[Turn], bandwidth: float) -> float:
    """Seconds that the bytes of every matrix and of the KV take, each read once."""
    weights = sum(matrix.numel() * matrix.element_size() for matrix in executor.model.matrices)
    positions = median(step.context_tokens for step in steps)
    return (weights + positions * executor.layout.page_bytes / executor.layout.page_size) / bandwidth


def stages_ms(steps: list[Turn]) -> dict[str, float]:
    """Where a step's time goes on the host."""
    stages = ("plan_s", "launch_s", "collect_s", "absorb_s")
    return {f"{stage[:-2]}_ms": 1000 * median(getattr(step, stage) for step in steps) for stage in stages}


def without_graphs(part: Part, device: Device, config: ModelConfig, parameters: Any) -> None:
    """One point again, every kernel launched by itself."""
    sizes, point = part.sizes, part.sizes.graphs_point
    figures = graph_figures(sizes)

    def measure() -> dict[str, float]:
        layout = layout_of(config, sizes, [point])
        plain = build_executor(device, config, parameters, layout, point[0], sizes.longest, graphs=False)
        steps = decode_steps(plain, point, sizes, part.options.seed)
        part.result.details[f"{point_name(point)}_without_graphs"] = stages_ms(steps)
        step_s = median(step.seconds for step in steps)
        with_graphs_ms = part.result.figures[f"decode_step_ms_{point_name(point)}"]
        return {figures[0]: 1000 * step_s, figures[1]: with_graphs_ms / (1000 * step_s)}

    part.step(f"batch {point[0]}, context {label(point[1])}, without graphs", figures, measure)
    if not device.on_gpu:
        part.note("There are no graphs on a CPU: with and without are the same.")
