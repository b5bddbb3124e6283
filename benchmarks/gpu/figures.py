"""The names of all figures, by part, and their goals. Pure, so that they exist even if a part cannot be imported."""

from __future__ import annotations

from collections.abc import Callable

from baton.harness.results import Goal
from benchmarks.gpu.sizes import Sizes, label, point_name

PREFLIGHT = "preflight_write_gb_per_s"
COMPILE = "compile_and_first_use_s"
ATTENTION = ["attention_error"]
LOGITS = [
    "logits_error_to_transformers",
    "logits_error_to_float32",
    "logits_error_of_transformers_to_float32",
    "logits_error_ratio_to_transformers",
]
TOKENS = ["handoff_tokens_equal", "built_in_look_ups_right"]
RECORDED = ["recorded_step_logprob_error"]
RANDOM_TOKENS = ["handoff_tokens_equal_random_weights"]
COPY = "copy_bandwidth_gb_per_s"
MATMUL = "matmul_tflops"
RATE = ["handoff_ratio_to_copy", "handoff_gb_per_s", "handoff_one_write_gb_per_s", "handoff_copy_gb_per_s"]
HIDDEN = ["handoff_hidden_share", "handoff_exposed_ms", "handoff_total_ms", "handoff_prefill_ms"]
CONTIGUOUS = "handoff_contiguous_gb_per_s"
PAGE_BY_PAGE = "handoff_page_by_page_gb_per_s"
LOADED = ["weights_load_gb_per_s"]
KERNELS = ("fa2", "fa3")
LAYOUTS = ("pages_per_layer", "layers_in_page", "heads_outermost")
SAMPLED_EQUAL = "sampling_tokens_equal_to_cpu"
SAMPLED_KINDS = ("greedy", "temperature", "top_p", "top_k", "top_k_top_p", "top_p_flat")
SERVED = ("pd", "mixed", "transformers")

DECODE_GOAL, DECODE_GOAL_UP_TO_BATCH = 1.25, 64
PREFILL_GOAL = 0.65


def decode_figures(point: tuple[int, int]) -> list[str]:
    """A point's figures: ratio to the lower bound, and milliseconds."""
    return [f"decode_ratio_to_floor_{point_name(point)}", f"decode_step_ms_{point_name(point)}"]


def graph_figures(sizes: Sizes) -> list[str]:
    """Figures of decode steps without graphs."""
    name = point_name(sizes.graphs_point)
    return [f"decode_step_ms_{name}_without_graphs", f"decode_ratio_graphs_to_none_{name}"]


def sampled_figures(sizes: Sizes) -> list[str]:
    """Figures of decode steps with sampling."""
    name = point_name(sizes.sampled_point)
    return [f"decode_step_ms_{name}_sampled", f"decode_ratio_sampled_to_greedy_{name}"]


def turn_figure(point: tuple[int, int]) -> str:
    """The figure of a whole worker's turns."""
    return f"decode_turn_ms_{point_name(point)}"


def prefill_figures(prompt: int) -> list[str]:
    """Figures of a prompt length: ratio to the matrix rate, and tokens per second."""
    return [f"prefill_ratio_to_matmul_{label(prompt)}", f"prefill_tokens_per_s_{label(prompt)}"]


def kernel_figure(kernels: str) -> str:
    """The figure of a prefill kernel."""
    return f"prefill_layer_ms_{kernels}"


def layout_figure(layout: str) -> str:
    """The figure of a page layout."""
    return f"decode_layer_ms_{layout}"


def sampling_figure(kind: str, batch: int) -> str:
    """The figure of a kind of sampling."""
    return f"sampling_ms_{kind}_b{batch}"


def served_figures(name: str) -> list[str]:
    """Figures of a way to serve."""
    return [f"serving_{name}_{figure}" for figure in ("tokens_per_s", "ttft_ms", "tpot_ms")]


def served_ratio(name: str) -> str:
    """The figure that compares a way to serve with transformers."""
    return f"serving_{name}_ratio_to_transformers"


def _decode(sizes: Sizes) -> list[str]:
    points = [name for point in sizes.decode_points for name in decode_figures(point)]
    turns = [turn_figure(point) for point in sizes.turn_points]
    return [COPY, *points, *sampled_figures(sizes), *turns, *graph_figures(sizes)]


def _prefill(sizes: Sizes) -> list[str]:
    return [MATMUL, *(name for prompt in sizes.prompts for name in prefill_figures(prompt))]


def _sampling(sizes: Sizes) -> list[str]:
    return [SAMPLED_EQUAL, *(sampling_figure(kind, batch) for batch in sizes.sampled_batches for kind in SAMPLED_KINDS)]


def _serving(sizes: Sizes) -> list[str]:
    return [
        *(name for kind in SERVED for name in served_figures(kind)),
        served_ratio("pd"),
        served_ratio("mixed"),
        *LOADED,
    ]


EXPECTED: dict[str, Callable[[Sizes], list[str]]] = {
    "preflight": lambda sizes: [PREFLIGHT],
    "compile": lambda sizes: [COMPILE],
    "correctness": lambda sizes: [*ATTENTION, *LOGITS, *RECORDED, *TOKENS, *RANDOM_TOKENS],
    "decode": _decode,
    "handoff": lambda sizes: [*RATE, CONTIGUOUS, *HIDDEN, PAGE_BY_PAGE],
    "prefill": _prefill,
    "kernels": lambda sizes: [*map(kernel_figure, KERNELS), *map(layout_figure, LAYOUTS)],
    "sampling": _sampling,
    "serving": _serving,
    "profile": lambda sizes: [],
}


def goals(sizes: Sizes) -> dict[str, Goal]:
    """The goals of the figures that have one."""
    decode = [point for point in sizes.decode_points if point[0] <= DECODE_GOAL_UP_TO_BATCH]
    return {
        "attention_error": Goal(1e-2, at_most=True),
        "logits_error_to_transformers": Goal(2e-2, at_most=True),
        "logits_error_ratio_to_transformers": Goal(1.5, at_most=True),
        "recorded_step_logprob_error": Goal(0.05, at_most=True),
        "handoff_tokens_equal": Goal(1.0),
        "built_in_look_ups_right": Goal(1.0),
        "handoff_tokens_equal_random_weights": Goal(1.0),
        SAMPLED_EQUAL: Goal(1.0),
        **{decode_figures(point)[0]: Goal(DECODE_GOAL, at_most=True) for point in decode},
        **{prefill_figures(prompt)[0]: Goal(PREFILL_GOAL) for prompt in sizes.prompts},
    }
