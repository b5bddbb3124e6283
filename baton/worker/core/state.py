"""State that a worker keeps when its role changes: pages, limits and facts about the model."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.config.schema import EngineSection
from baton.engine.batch import StepBudget
from baton.engine.kv_pages import PagePool
from baton.engine.sequence import Sequence
from baton.protocol.prefix_hash import tenant_root
from baton.worker.core.token_streams import TokenStreams


@dataclass(frozen=True, slots=True)
class WorkerState:
    """Shared by every role a worker takes on. Roles change `pool` and `streams`; the rest is fixed at start."""

    agent: str  # the name peers write to: worker and incarnation
    model_id: str
    eos_token_ids: frozenset[int]
    context_tokens: int
    budget: StepBudget
    pool: PagePool
    role_epoch: int = 0
    engine: EngineSection = field(default_factory=EngineSection)
    share_prefixes: bool = False  # between tenants
    host_pages: int = 0  # slots of host memory for preempted sequences; 0: they are recomputed
    streams: TokenStreams = field(default_factory=TokenStreams)
    vocab_size: int = 1 << 31

    def root(self, sequence: Sequence) -> bytes:
        """The parent hash of the sequence's first page."""
        return tenant_root(self.model_id, sequence.request.tenant, self.share_prefixes)
