"""Builds a worker from its plan: weights, pages, transport, session, loop."""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Callable

import torch

from baton.config.process_config import WorkerConfig
from baton.engine.batch import StepBudget
from baton.engine.checkpoint import read_config, resolve_model
from baton.engine.host_pages import HostPages
from baton.engine.kv_pages import PagePool
from baton.kv_transfer.transports import find_transport
from baton.protocol.worker import Endpoint, RoleName, WorkerInfo
from baton.worker.core.state import WorkerState
from baton.worker.executors import make_executor
from baton.worker.heartbeat import Heartbeat
from baton.worker.links import WorkerLinks
from baton.worker.loop import WorkerLoop
from baton.worker.session import WorkerSession


def assemble(plan: WorkerConfig, incarnation: str, host: str, tell: Callable[[str], None]) -> WorkerLoop:
    """A worker ready to run; `tell` receives progress lines."""
    engine = plan.engine
    torch.set_num_threads(engine.threads)
    open_transport = find_transport(engine.transport)
    folder = resolve_model(plan.model.path)
    config = read_config(folder)
    executor = make_executor(plan, folder, config, tell)
    layout = executor.layout
    tell("warming up")
    executor.warm_up()
    if engine.host_pages:
        tell("taking host memory")
    host_pages = HostPages(executor.pages, engine.host_pages)
    gc.collect()
    gc.freeze()  # exclude start-up objects: collecting them would delay a step by 0.1 s now and then
    tell("registering memory")
    agent = f"{plan.name}:{incarnation}"
    device_id = executor.pages.device.index or 0
    context_tokens = min(config.context_tokens, plan.model.context_tokens)
    pool = PagePool(layout.num_pages, layout.page_size)
    budget = StepBudget(engine.chunk_tokens, engine.max_batch, engine.mixed_chunk_tokens)
    state = WorkerState(
        agent,
        layout.model_id,
        config.eos_token_ids,
        context_tokens,
        budget,
        pool,
        engine=engine,
        share_prefixes=plan.access.share_prefixes,
        host_pages=engine.host_pages,
        vocab_size=config.vocab_size,
    )
    info = WorkerInfo(
        name=plan.name,
        incarnation=incarnation,
        role=RoleName(plan.role),
        role_epoch=state.role_epoch,
        endpoint=Endpoint(agent, layout),  # the transport has its own
        chunk_tokens=engine.chunk_tokens,
        max_batch=engine.max_batch,
        mixed_chunk_tokens=engine.mixed_chunk_tokens,
        host=host,
        pid=os.getpid(),
        device=engine.device,
    )
    return WorkerLoop(
        session=WorkerSession(info, state, lambda: uuid.uuid4().hex[:8]),
        executor=executor,
        links=WorkerLinks(plan.name, plan.router_address, incarnation, plan.link_keys),
        make_transport=lambda agent: open_transport(executor.pages, layout, agent, device_id),
        heartbeat=Heartbeat(plan.router_address, plan.name, plan.link_keys),
        checksum=executor.page_checksum,
        host_pages=host_pages,
    )
