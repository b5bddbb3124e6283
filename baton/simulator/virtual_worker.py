"""A worker in a virtual cluster: the real session and pages, and queues in place of its links."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from baton.config.schema import EngineSection
from baton.engine.batch import StepBudget
from baton.engine.kv_pages import PagePool
from baton.engine.step import StepPlan, StepResult
from baton.protocol.handoff import HandoffNotice
from baton.protocol.head_slices import Piece, heads_of
from baton.protocol.messages import RouterMessage, WorkerMessage
from baton.protocol.worker import Endpoint, PageLayout, RankAddress, RoleName, WorkerInfo
from baton.simulator.links import Link, Wire
from baton.simulator.token_checker import EOS, PageMemory
from baton.worker.core.rank_writes import RankWrites
from baton.worker.core.role import Role, SwapIn, SwapOut
from baton.worker.core.state import WorkerState
from baton.worker.session import Phase, WorkerSession

PAGE_SIZE, CONTEXT_TOKENS, MAX_BATCH = 4, 1000, 8
WRITE_STALL_S = 0.5
RankPair = tuple[int, Piece]
"""A rank of a write's source, and the piece of each page that it writes to a rank of the target."""


@dataclass(eq=False, slots=True)
class GatewayLink:
    """A worker's link to a gateway, which is at this address as long as that process lives."""

    link: Link
    address: str


@dataclass(eq=False)
class VirtualWorker:
    """One worker: session, page memory and its links."""

    session: WorkerSession
    memory: PageMemory
    link: Link = field(init=False)  # to the router
    gateways: dict[str, GatewayLink] = field(default_factory=dict)  # by name
    notices: deque[HandoffNotice] = field(default_factory=deque)
    peers: dict[str, int] = field(default_factory=dict)  # agents it is connected with, and their ranks
    broken: set[tuple[str, int, int]] = field(default_factory=set)  # connections of (agent, our rank, its rank)
    rank_writes: RankWrites[RankPair] = field(default_factory=RankWrites)  # to or from workers of several ranks
    opening: str = ""  # the name of the transport that it opens
    silent: bool = False  # stopped: it computes and sends nothing
    gone: bool = False  # its process has ended
    stopped_ranks: set[int] = field(default_factory=set)  # without which no step ends
    dead_ranks: set[int] = field(default_factory=set)  # the others have not ended yet
    stepping: tuple[StepPlan, StepResult] | None = None  # computed, but not absorbed
    granted: dict[tuple[str, int], int] = field(default_factory=dict)  # (agent, page) → generation it may write into
    granted_by: dict[tuple[str, int], str] = field(default_factory=dict)  # and the page's reservation
    turn_due: bool = False  # its next turn has a time
    leave_due: bool = False  # its next look at writes that hold up a registration has a time
    notice_due: bool = False  # the next notice that it reads has a time

    @property
    def blocked(self) -> bool:
        """Whether it takes no message now."""
        return self.silent or self.gone or self.stepping is not None

    @property
    def wires(self) -> Iterator[Wire]:
        """Each direction of its links."""
        for link in (self.link, *(one.link for one in self.gateways.values())):
            yield link.back
            yield link.out

    @property
    def inbox(self) -> deque[RouterMessage]:
        """Messages of the router on their way."""
        return self.link.back.queue

    @inbox.setter
    def inbox(self, queue: deque[RouterMessage]) -> None:
        self.link.back.queue = queue

    @property
    def name(self) -> str:
        return self.session.info.name

    @property
    def incarnation(self) -> int:
        return int(self.session.info.incarnation)

    @property
    def stuck(self) -> bool:
        """Whether the step under way does not end: a rank does not compute."""
        return self.silent or bool(self.stopped_ranks | self.dead_ranks)

    @property
    def num_ranks(self) -> int:
        """Processes that compute each step together; rank 0 has the session."""
        return self.session.info.num_ranks

    @property
    def role(self) -> Role:
        return self.session.role

    @property
    def state(self) -> WorkerState:
        return self.session.state

    @property
    def outbox(self) -> list[WorkerMessage]:
        """Messages on their way to the router."""
        return [message for _, message in self.link.out.queue]

    @property
    def serving(self) -> bool:
        return self.session.phase is Phase.SERVING

    @property
    def leaving(self) -> bool:
        return self.session.phase is Phase.LEAVING

    @property
    def prefilled(self) -> int:
        """Tokens that it has computed in chunks."""
        return self.memory.prefilled

    @property
    def computed(self) -> int:
        """Positions that it has computed."""
        return self.memory.computed

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute a step. Raises `Violation` if it reads foreign KV."""
        return self.memory.execute(plan)

    def copy(self, copies: SwapOut | SwapIn) -> None:
        """Move pages to host memory, or back."""
        match copies:
            case SwapOut(pages, slots):
                self.memory.swap_out(pages, slots)
            case SwapIn(slots, pages):
                self.memory.swap_in(slots, pages)

    def new_transport(self) -> None:
        """What belonged to the former incarnation's transport is gone."""
        for memory in (self.peers, self.broken, self.granted, self.granted_by, self.notices):
            memory.clear()
        self.rank_writes = RankWrites()


@dataclass(frozen=True, slots=True)
class WorkerShape:
    """What the workers of a cluster have in common."""

    num_pages: int
    chunk_tokens: int
    host_pages: int  # slots of host memory for preempted sequences
    share_prefixes: bool
    ends: bool  # the model has an end-of-sequence token
    num_kv_heads: int = 1

    def start(self, name: str, role: RoleName, incarnation: int, num_ranks: int = 1) -> VirtualWorker:
        """A worker without a transport; its later incarnations are numbered in steps of 100. A new process has a
        new process id."""
        agent = f"{name}:{incarnation}"
        state = WorkerState(
            agent,
            "model",
            frozenset([EOS] if self.ends else []),
            CONTEXT_TOKENS,
            StepBudget(self.chunk_tokens, MAX_BATCH),
            PagePool(self.num_pages, PAGE_SIZE),
            engine=EngineSection(write_stall_s=WRITE_STALL_S),
            share_prefixes=self.share_prefixes,
            host_pages=self.host_pages,
        )
        layout = PageLayout(self.num_pages, 1, PAGE_SIZE, self.num_kv_heads, 1, "float32", "model")
        endpoint = Endpoint(agent, layout, (RankAddress(),) * num_ranks)
        info = WorkerInfo(name, str(incarnation), role, 0, endpoint, self.chunk_tokens, MAX_BATCH, pid=incarnation)
        later = itertools.count(incarnation + 100, 100)
        session = WorkerSession(info, state, lambda: str(next(later)))
        heads = num_ranks * len(heads_of(self.num_kv_heads, num_ranks, 0))
        return VirtualWorker(session, PageMemory(name, self.num_pages, PAGE_SIZE, heads))
