"""Builds a worker's executor: weights, pages, and on a GPU the number of pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from baton.config.process_config import WorkerConfig
from baton.engine.checkpoint import model_id
from baton.engine.cuda_device import open_device
from baton.engine.cuda_executor import CudaExecutor, CudaOptions
from baton.engine.device_memory import pages_that_fit
from baton.engine.executor import TorchExecutor
from baton.engine.graph_sizes import graph_sizes
from baton.engine.kernel_loading import prepare_kernels
from baton.engine.memory_profile import measure
from baton.engine.model_config import ModelConfig
from baton.engine.ranks import Ranks
from baton.engine.storage import DTYPES
from baton.engine.weights import load_weights

Tell = Callable[[str], None]


def make_executor(
    plan: WorkerConfig, folder: Path, config: ModelConfig, tell: Tell, ranks: Ranks
) -> TorchExecutor | CudaExecutor:
    """Loads a rank's part of the checkpoint in `folder`; each rank of the worker calls this at the same time.

    `tell` receives progress lines. Raises `BatonError` with the reason.
    """

    def loading(done: int, total: int) -> None:
        tell(f"loading weights {100 * done // total} %")

    engine = plan.engine
    if engine.device != "cpu":
        return _on_gpu(plan, folder, config, tell, loading, ranks)
    layout = config.page_layout(engine.num_pages, engine.page_size, plan.model.dtype, model_id(folder))
    parameters = load_weights(folder, config, DTYPES[plan.model.dtype], "cpu", loading, ranks)
    return TorchExecutor(config, parameters, layout, ranks)


def _on_gpu(
    plan: WorkerConfig,
    folder: Path,
    config: ModelConfig,
    tell: Tell,
    loading: Callable[[int, int], None],
    ranks: Ranks,
) -> CudaExecutor:
    engine, dtype = plan.engine, plan.model.dtype
    device = open_device(engine.device)
    own = config.slice(ranks.num_ranks, ranks.rank)
    kernels = prepare_kernels(device, own, DTYPES[dtype], engine.attention, tell)
    parameters = load_weights(folder, config, DTYPES[dtype], str(device), loading, ranks)
    # A step's decodes share the budget with its chunk.
    max_tokens = max(engine.chunk_tokens, engine.max_batch)
    options = CudaOptions(engine.cuda_graphs, kernels, engine.max_batch, max_tokens)
    layout = config.page_layout(max(engine.num_pages, 1), engine.page_size, dtype, model_id(folder))
    if not engine.num_pages:
        tell("measuring memory")
        memory = measure(config, parameters, layout, options, len(graph_sizes(engine.max_batch)), ranks)
        context_tokens = min(config.context_tokens, plan.model.context_tokens)
        needed = -(-context_tokens // engine.page_size) + 1
        page_bytes = own.num_kv_heads * layout.head_bytes
        num_pages = ranks.minimum(pages_that_fit(memory, engine.gpu_memory_fraction, page_bytes, needed))
        layout = config.page_layout(num_pages, engine.page_size, dtype, model_id(folder))

    def recording(done: int, total: int) -> None:
        tell(f"recording decode steps {done} of {total}")

    return CudaExecutor(config, parameters, layout, options, recording, ranks)
