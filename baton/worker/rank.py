"""One rank of a worker: its part of the model, of every page and of host memory, and its end of the page network."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

from baton.config.process_config import WorkerConfig
from baton.engine.checkpoint import read_config, resolve_model
from baton.engine.cuda_executor import CudaExecutor
from baton.engine.executor import TorchExecutor
from baton.engine.host_pages import HostPages
from baton.engine.model_config import ModelConfig
from baton.engine.ranks import Ranks
from baton.kv_transfer.transports import find_transport
from baton.worker.background_transport import BackgroundTransport
from baton.worker.executors import make_executor


@dataclass(frozen=True, slots=True)
class Rank:
    """What one process of a worker owns; a worker of one rank is one of these."""

    config: ModelConfig  # Of the whole model
    executor: TorchExecutor | CudaExecutor
    host_pages: HostPages
    transport: BackgroundTransport


def load_rank(plan: WorkerConfig, agent: str, tell: Callable[[str], None], ranks: Ranks) -> Rank:
    """A rank that can compute; each rank of the worker calls this at the same time. Raises `BatonError`.

    `agent` is the worker's name for peers; `tell` receives progress lines.
    """
    engine = plan.engine
    open_transport = find_transport(engine.transport)
    folder = resolve_model(plan.model.path)
    config = read_config(folder)
    executor = make_executor(plan, folder, config, tell, ranks)
    tell("warming up")
    executor.warm_up()
    if engine.host_pages:
        tell("taking host memory")
    host_pages = HostPages(executor.pages, engine.host_pages)
    gc.collect()
    gc.freeze()  # exclude start-up objects: collecting them would delay a step by 0.1 s now and then
    tell("registering memory")
    device_id = executor.pages.device.index or 0
    transport = BackgroundTransport(
        lambda name: open_transport(executor.pages, executor.layout, name, device_id, ranks.rank, ranks.num_ranks),
        agent,
    )
    return Rank(config, executor, host_pages, transport)
