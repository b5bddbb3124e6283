"""Builds a worker's executor: weights, pages, and on a GPU the number of pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from baton.config.plan import WorkerPlan
from baton.engine.checkpoint import model_id
from baton.engine.cuda_device import open_device
from baton.engine.cuda_executor import CudaExecutor, CudaOptions
from baton.engine.device_memory import pages_that_fit
from baton.engine.executor import TorchExecutor
from baton.engine.graph_sizes import graph_sizes
from baton.engine.kernel_loading import prepare_kernels
from baton.engine.memory_profile import measure
from baton.engine.model_config import ModelConfig
from baton.engine.storage import DTYPES
from baton.engine.weights import load_weights

Tell = Callable[[str], None]


def make_executor(plan: WorkerPlan, folder: Path, config: ModelConfig, tell: Tell) -> TorchExecutor | CudaExecutor:
    """Loads the checkpoint in `folder`; `tell` receives progress lines. Raises `BatonError` with the reason."""

    def loading(done: int, total: int) -> None:
        tell(f"loading weights {100 * done // total} %")

    if plan.device != "cpu":
        return _on_gpu(plan, folder, config, tell, loading)
    layout = config.page_layout(plan.num_pages, plan.page_size, plan.dtype, model_id(folder))
    return TorchExecutor(config, load_weights(folder, config, DTYPES[plan.dtype], "cpu", loading), layout)


def _on_gpu(
    plan: WorkerPlan, folder: Path, config: ModelConfig, tell: Tell, loading: Callable[[int, int], None]
) -> CudaExecutor:
    device = open_device(plan.device)
    kernels = prepare_kernels(device, config, DTYPES[plan.dtype], plan.attention, tell)
    parameters = load_weights(folder, config, DTYPES[plan.dtype], str(device), loading)
    # A step's decodes share the budget with its chunk.
    max_tokens = max(plan.chunk_tokens, plan.max_batch)
    options = CudaOptions(plan.cuda_graphs, kernels, plan.max_batch, max_tokens)
    layout = config.page_layout(max(plan.num_pages, 1), plan.page_size, plan.dtype, model_id(folder))
    if not plan.num_pages:
        tell("measuring memory")
        memory = measure(config, parameters, layout, options, len(graph_sizes(plan.max_batch)))
        context_tokens = min(config.context_tokens, plan.context_tokens)
        needed = -(-context_tokens // plan.page_size) + 1
        num_pages = pages_that_fit(memory, plan.gpu_memory_fraction, layout.page_bytes, needed)
        layout = config.page_layout(num_pages, plan.page_size, plan.dtype, model_id(folder))

    def recording(done: int, total: int) -> None:
        tell(f"recording decode steps {done} of {total}")

    return CudaExecutor(config, parameters, layout, options, recording)
