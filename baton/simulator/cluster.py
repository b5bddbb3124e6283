"""A whole cluster without I/O: the real router core, sessions and roles, and all that can happen between them.

What happens next is decided elsewhere: at random (stepped_cluster.py), or by a virtual clock (timed_cluster.py).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from baton.config.schema import RouterSection
from baton.gateway.core.detokenizer import Vocabulary
from baton.protocol.errors import BatonError
from baton.protocol.messages import Reregister
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import RoleName
from baton.router.core.completion import Completion
from baton.router.core.core import RouterCore
from baton.router.core.operation import Operation, OperationSpec, Undrain
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.placement import Placement
from baton.router.policy.predicted_latency import PredictedLatency
from baton.simulator import page_checker
from baton.simulator.deliveries import Deliveries
from baton.simulator.page_network import PageWrite
from baton.simulator.token_checker import expected_output
from baton.simulator.virtual_worker import VirtualWorker, WorkerShape

CLAIM_WITHIN_S = 0.5  # of what a worker has kept


@dataclass(eq=False)
class VirtualCluster(Deliveries):
    """The router, the workers, the network and the clients. Raises `Violation` when the cluster breaks a promise."""

    num_pages: int = 24
    chunk_tokens: int = 8
    host_pages: int = 0
    placement: Placement = field(default_factory=PredictedLatency)
    share_prefixes: bool = False
    ends: bool = True  # the model has an end-of-sequence token, and comes to it soon
    vocabulary: Vocabulary | None = None
    routers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.core = self.new_router("router", float("-inf"))

    @property
    def requests(self) -> dict[str, Request]:
        """What clients have sent, by request id."""
        return self.clients.requests

    @property
    def shown(self) -> dict[str, list[int]]:
        """The tokens that each client has received."""
        return self.clients.shown

    @property
    def ended(self) -> dict[str, Completion]:
        """How each ended stream has ended."""
        return self.clients.ended

    def new_router(self, router_id: str, started_s: float) -> RouterCore:
        """A router core without any state, which raises for an event that no request should get."""
        limits = RouterSection(claim_within_s=CLAIM_WITHIN_S)
        state = ClusterState(share_prefixes=self.share_prefixes)
        core = RouterCore(router_id, self.placement, self.vocabulary, limits, state, started_s=started_s)
        core.requests.strict = True
        return core

    def add(self, name: str, role: RoleName, incarnation: int = 1) -> VirtualWorker:
        """Start a worker, which registers."""
        shape = WorkerShape(self.num_pages, self.chunk_tokens, self.host_pages, self.share_prefixes, self.ends)
        worker = self.workers[name] = shape.start(name, role, incarnation)
        worker.session.on_transport(worker.session.info.endpoint, self.now)
        return worker

    def submit(self, request_id: str, prompt: Seq[int], max_tokens: int, tenant: str = "") -> Request:
        """A client sends a request. Raises what the router refuses it with."""
        request = Request(request_id, tuple(prompt), SamplingParams(max_tokens=max_tokens), self.now, tenant=tenant)
        self.shown[request_id] = []
        self.perform(self.core.submit(request, self.now))
        self.clients.ask(request)
        return request

    def resume(self, request_id: str) -> None:
        """The client asks for the rest of its stream; the latest tokens may not have reached it."""
        num_shown = len(self.shown[request_id])
        shown = self.clients.resume(request_id, num_shown - self.rng.randint(max(0, num_shown - 3), num_shown))
        request = replace(self.requests[request_id], arrival_s=self.now)
        emitted = tuple(shown) if self.rng.random() < 0.7 else ()
        self.perform(self.core.submit(request, self.now, emitted, bool(shown)))

    def cancel(self, request_id: str, error: BatonError) -> None:
        """The client leaves."""
        self.perform(self.core.stop(request_id, error, self.now))

    def expected(self, request: Request) -> list[int]:
        """The model's answer."""
        return expected_output(request, self.ends)

    def operate(self, spec: OperationSpec, operation_id: str = "") -> Operation:
        """Start an operator's operation. Raises what the router refuses it with."""
        operation, commands = self.core.start_operation(operation_id, spec, False, self.now)
        self.perform(commands)
        return operation

    def cancel_operation(self, operation_id: str) -> Operation:
        """An operator cancels an operation."""
        operation, commands = self.core.cancel_operation(operation_id, self.now)
        self.perform(commands)
        return operation

    def undrain_all(self) -> None:
        """Every worker serves again."""
        cordoned = tuple(sorted(self.core.state.cordoned & self.core.state.workers.keys()))
        if cordoned:
            self.operate(Undrain(cordoned))

    def kill(self, name: str) -> None:
        """The process ends: what it had queued is lost, its writes never end, others learn of it from the router."""
        worker = self.workers.pop(name)
        self.network.died(worker, [one for one in self.network.writes if self._may_outlive(one, worker)], self.now)
        self.on_process_ended(name)

    def on_process_ended(self, name: str) -> None:
        """The router learns that the worker's process has ended."""
        self.perform(self.core.on_worker_lost(name, self.now))

    def _may_outlive(self, write: PageWrite, source: VirtualWorker) -> bool:
        """Whether the kernel of its dead source may deliver it, and the router can infer that."""
        if write.source is not source or write.landed or not self.network.is_cut(write):
            return False
        agent, pages = write.command.agent, write.command.target_pages
        stalled = bool(pages) and source.granted_by[agent, pages[0]] in self.stalled
        return stalled or (bool(pages) and write.target not in self.core.state.workers)

    def restart_router(self, down_s: float = 0.0) -> None:
        """The router loses all its state, and is back later; of what was on its way, some arrives."""
        self.routers += 1
        self.core = self.new_router(f"router-{self.routers}", self.now + down_s)
        self.to_kill.clear()
        for worker in self.workers.values():
            self._lose(worker)

    def break_connection(self, name: str) -> None:
        """Between a worker and the router, both of which live; the worker sees it after its step."""
        worker = self.workers[name]
        if worker.stepping is not None:
            self.absorb_step(worker)
        self._lose(worker)
        self.to_worker(worker, Reregister(str(worker.incarnation), ""))

    def _lose(self, worker: VirtualWorker) -> None:
        """Some of what is on its way between the router and a worker."""
        for _ in range(self.rng.randint(0, len(worker.inbox))):
            worker.inbox.pop()
        for _ in range(self.rng.randint(0, len(worker.outbox))):
            worker.outbox.pop(0)

    def check_nothing_is_held(self) -> None:
        """All pages are back, and the router remembers no request. Raises `Violation`."""
        page_checker.check_nothing_is_held(self.core, self.workers.values())
