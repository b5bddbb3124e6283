"""Builds a worker from its plan: weights, pages, transport, role, loop."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from cluster.plan import WorkerPlan
from cluster.worker import RoleName, WorkerInfo
from engine.batch import StepBudget
from engine.checkpoint import model_id, read_config, resolve_model
from engine.executor import DTYPES, TorchExecutor
from engine.kv_pages import PagePool
from engine.weights import load_weights
from kv_transfer.nixl import NixlTransport
from worker.loop import WorkerLoop
from worker.role_switch import make_role
from worker.router_link import RouterLink
from worker.state import WorkerState


def assemble(plan: WorkerPlan, incarnation: str, host: str, tell: Callable[[str], None]) -> WorkerLoop:
    """A worker ready to run; `tell` hears what is being done, for a progress line."""
    torch.set_num_threads(plan.threads)
    folder = resolve_model(plan.model)
    config = read_config(folder)
    layout = config.page_layout(plan.num_pages, plan.page_size, plan.dtype, model_id(folder))

    def loading(done: int, total: int) -> None:
        tell(f"loading weights {100 * done // total} %")

    executor = TorchExecutor(config, load_weights(folder, config, DTYPES[plan.dtype], "cpu", loading), layout)
    tell("warming up")
    executor.warm_up()
    tell("registering memory")
    agent = f"{plan.name}:{incarnation}"
    transport = NixlTransport(executor.pages, layout, agent)
    context_tokens = min(config.context_tokens, plan.context_tokens)
    pool = PagePool(layout.num_pages, layout.page_size)
    budget = StepBudget(plan.chunk_tokens, plan.max_batch, plan.mixed_chunk_tokens)
    shared = plan.share_prefixes
    state = WorkerState(
        agent, layout.model_id, config.eos_token_ids, context_tokens, budget, pool, share_prefixes=shared
    )
    role = make_role(RoleName(plan.role), state)
    info = WorkerInfo(
        name=plan.name,
        incarnation=incarnation,
        role=role.name,
        role_epoch=state.role_epoch,
        endpoint=transport.endpoint,
        chunk_tokens=plan.chunk_tokens,
        max_batch=plan.max_batch,
        mixed_chunk_tokens=plan.mixed_chunk_tokens,
        host=host,
        pid=os.getpid(),
        device=plan.device,
    )
    link = RouterLink(plan.router_address, plan.name, plan.link_keys)
    return WorkerLoop(info, state, role, executor, link, transport)
