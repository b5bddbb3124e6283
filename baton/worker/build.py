"""Builds a worker from its plan: weights, pages, transport, session, loop."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable

import torch

from baton.config.process_config import WorkerConfig
from baton.engine.batch import StepBudget
from baton.engine.kv_pages import PagePool
from baton.engine.ranks import ONE_RANK, ProcessGroupRanks
from baton.protocol.errors import ConfigError
from baton.protocol.worker import RoleName, WorkerInfo
from baton.worker.core.state import WorkerState
from baton.worker.heartbeat import Heartbeat
from baton.worker.links import WorkerLinks
from baton.worker.loop import WorkerLoop
from baton.worker.rank import Rank, load_rank
from baton.worker.ranks.facades import RankedExecutor, RankedHostPages, RankedTransport
from baton.worker.ranks.leader import StartRank, start_followers
from baton.worker.session import WorkerSession

Tell = Callable[[str], None]


def assemble(
    plan: WorkerConfig, incarnation: str, host: str, tell: Tell, start_rank: StartRank | None = None
) -> WorkerLoop:
    """A worker ready to run; `tell` receives progress lines.

    This process is its first rank, and `start_rank` starts the others, if there are any. Raises `BatonError`.
    """
    torch.set_num_threads(plan.engine.threads)
    if plan.engine.ranks > 1:
        return _of_several_ranks(plan, incarnation, host, tell, start_rank)
    rank = load_rank(plan, f"{plan.name}:{incarnation}", tell, ONE_RANK)
    return WorkerLoop(
        session=_session(plan, incarnation, host, rank),
        executor=rank.executor,
        links=WorkerLinks(plan.name, plan.router_address, incarnation, plan.link_keys),
        transport=rank.transport,
        heartbeat=Heartbeat(plan.router_address, plan.name, plan.link_keys),
        checksum=rank.executor.page_checksum,
        host_pages=rank.host_pages,
    )


def _of_several_ranks(
    plan: WorkerConfig, incarnation: str, host: str, tell: Tell, start_rank: StartRank | None
) -> WorkerLoop:
    if start_rank is None:
        raise ConfigError(f"{plan.name} has {plan.engine.ranks} ranks, but can start only one here.")
    agent = f"{plan.name}:{incarnation}"
    tell(f"starting {plan.engine.ranks} ranks")
    followers = start_followers(plan, agent, start_rank)
    with followers.ended_on_error():
        ranks = ProcessGroupRanks(followers.folder, 0, plan.engine.ranks, plan.engine.device)
        rank = load_rank(plan, agent, tell, ranks)
        opened = followers.loaded()
        session = _session(plan, incarnation, host, rank)
        executor = RankedExecutor(rank.executor, followers)
        return WorkerLoop(
            session=session,
            executor=executor,
            links=WorkerLinks(plan.name, plan.router_address, incarnation, plan.link_keys),
            transport=RankedTransport(rank.transport, followers, lambda: session.expects_peers, opened),
            heartbeat=Heartbeat(plan.router_address, plan.name, plan.link_keys, lambda: followers.healthy),
            checksum=executor.page_checksum,
            host_pages=RankedHostPages(rank.host_pages, followers),
        )


def _session(plan: WorkerConfig, incarnation: str, host: str, rank: Rank) -> WorkerSession:
    engine, config, endpoint = plan.engine, rank.config, rank.transport.endpoint
    layout = endpoint.layout
    state = WorkerState(
        endpoint.agent,
        layout.model_id,
        config.eos_token_ids,
        min(config.context_tokens, plan.model.context_tokens),
        StepBudget(engine.chunk_tokens, engine.max_batch, engine.mixed_chunk_tokens),
        PagePool(layout.num_pages, layout.page_size),
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
        endpoint=endpoint,  # The loop replaces it by that of all ranks
        chunk_tokens=engine.chunk_tokens,
        max_batch=engine.max_batch,
        mixed_chunk_tokens=engine.mixed_chunk_tokens,
        host=host,
        pid=os.getpid(),
        device=engine.device,
    )
    return WorkerSession(info, state, lambda: uuid.uuid4().hex[:8])
