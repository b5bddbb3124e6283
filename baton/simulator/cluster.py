"""A whole cluster without I/O: the real router core, gateways and sessions, and all that can happen between them.

What happens next is decided elsewhere: at random (stepped_cluster.py), or by a virtual clock (timed_cluster.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from baton.config.schema import GatewaySection, RouterSection
from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.detokenizer import Vocabulary
from baton.gateway.core.live_stream import ModelFacts
from baton.gateway.core.session import GatewaySession
from baton.protocol.errors import BatonError, Cancelled
from baton.protocol.gateway_messages import GatewayInfo
from baton.protocol.latency import Latency
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import RoleName
from baton.router.core.core import RouterCore
from baton.router.core.operation import Operation, OperationSpec, Undrain
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.placement import Placement
from baton.router.policy.predicted_latency import PredictedLatency
from baton.simulator import page_checker
from baton.simulator.deliveries import Deliveries
from baton.simulator.links import Link
from baton.simulator.page_network import PageWrite
from baton.simulator.token_checker import VOCAB, expected_output
from baton.simulator.virtual_gateway import VirtualGateway
from baton.simulator.virtual_worker import PAGE_SIZE, VirtualWorker, WorkerShape

CLAIM_WITHIN_S = 0.5  # of what a worker has kept, or runs for a gateway that is gone


@dataclass(eq=False)
class VirtualCluster(Deliveries):
    """The router, gateways, workers, the network and clients. Raises `Violation` when the cluster breaks a promise."""

    num_pages: int = 24
    chunk_tokens: int = 8
    host_pages: int = 0
    placement: Placement = field(default_factory=PredictedLatency)
    share_prefixes: bool = False
    ends: bool = True  # the model has an end-of-sequence token, and comes to it soon
    vocabulary: Vocabulary | None = None
    num_gateways: int = 1
    ranks: Mapping[RoleName, int] = field(default_factory=dict)  # of workers that start with a role; 1 if not given
    num_kv_heads: int = 1
    routers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.core = self.new_router("router", float("-inf"))
        for number in range(self.num_gateways):
            self.add_gateway(f"gateway-{number}")

    @property
    def requests(self) -> dict[str, Request]:
        """What clients have sent, by request id."""
        return self.clients.requests

    @property
    def shown(self) -> dict[str, list[int]]:
        """The tokens that each client has received."""
        return self.clients.shown

    @property
    def ended(self) -> dict[str, StreamEnd]:
        """How each ended stream has ended."""
        return self.clients.ended

    def new_router(self, router_id: str, started_s: float) -> RouterCore:
        """A router core without any state, which raises for an event that no request should get."""
        limits = RouterSection(claim_within_s=CLAIM_WITHIN_S)
        state = ClusterState()
        core = RouterCore(router_id, self.placement, limits, state, started_s=started_s)
        core.requests.strict = True
        return core

    def add(self, name: str, role: RoleName, incarnation: int = 1) -> VirtualWorker:
        """Start a worker, which registers."""
        shape = WorkerShape(
            self.num_pages, self.chunk_tokens, self.host_pages, self.share_prefixes, self.ends, self.num_kv_heads
        )
        worker = self.workers[name] = shape.start(name, role, incarnation, self.ranks.get(role, 1))
        self.link_to_router(worker)
        worker.session.on_transport(worker.session.info.endpoint, self.now)
        self.perform_for(worker, [])
        return worker

    def add_gateway(self, name: str, incarnation: int = 1) -> VirtualGateway:
        """Start a gateway, which registers."""
        info = GatewayInfo(name, str(incarnation), f"{name}:{incarnation}", pid=incarnation)
        facts = ModelFacts("model", PAGE_SIZE, VOCAB, self.share_prefixes)
        gateway = VirtualGateway(GatewaySession(info, facts, self.vocabulary, GatewaySection().router_grace_s))
        self.gateways[name] = gateway
        self.link_gateway(gateway)
        return gateway

    def submit(
        self, request_id: str, prompt: Seq[int], max_tokens: int, tenant: str = "", gateway: str = "gateway-0"
    ) -> Request:
        """A client sends a request to a gateway. Raises what it refuses it with."""
        request = Request(request_id, tuple(prompt), SamplingParams(max_tokens=max_tokens), self.now, tenant=tenant)
        self._open(self.gateways[gateway], request)
        return request

    def _open(self, gateway: VirtualGateway, request: Request) -> None:
        commands = gateway.session.open(request, self.now)
        self.clients.ask(request, gateway)
        self.perform_at(gateway, commands)

    def lose(self, request_id: str) -> None:
        """The client's connection breaks; the latest tokens may not have reached it. The gateway sees that or not."""
        gateway = self.clients.readers.get(request_id)
        num_shown = len(self.shown[request_id])
        self.clients.lose(request_id, num_shown - self.rng.randint(max(0, num_shown - 3), num_shown))
        if gateway is not None and not gateway.gone and self.rng.random() < 0.5:
            left = Cancelled("the client's connection broke")
            self.perform_at(gateway, gateway.session.leave(request_id, left, self.now))

    def resume(self, request_id: str, gateway: str = "") -> None:
        """The client asks a gateway for the rest of its stream, if its connection to another one has not broken."""
        if request_id in self.clients.readers:
            self.lose(request_id)
        at = self.gateways[gateway or self.rng.choice(sorted(self.gateways))]
        request = replace(self.requests[request_id], arrival_s=self.now)
        shown = self.shown[request_id]
        emitted = tuple(shown) if self.rng.random() < 0.7 else ()
        commands = at.session.open(request, self.now, emitted, len(shown))
        self.clients.readers[request_id] = at
        self.perform_at(at, commands)

    def cancel(self, request_id: str, error: BatonError) -> None:
        """The client leaves."""
        gateway = self.clients.readers.pop(request_id, None)
        if gateway is None or request_id in self.ended:
            return
        tokens = len(self.shown[request_id])
        self.ended[request_id] = StreamEnd(request_id, None, error, 0, tokens, 0, "", Latency(self.now))
        self.perform_at(gateway, gateway.session.leave(request_id, error, self.now))

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
        """The process ends: its writes never end, others learn of it from the router."""
        worker = self.workers.pop(name)
        worker.gone = True
        self.network.died(worker, [one for one in self.network.writes if self._may_outlive(one, worker)], self.now)
        worker.link.out.clear()
        worker.link.back.clear()
        for ours in worker.gateways.values():
            ours.link.end(self.rng)
            self.on_sent(ours.link.out)
        self.on_process_ended(name)

    def on_process_ended(self, name: str) -> None:
        """The router learns that the worker's process has ended."""
        self.perform(self.core.on_worker_lost(name, self.now))

    def kill_gateway(self, name: str) -> list[str]:
        """The process ends: connections of its clients break. Returns the requests whose streams it had."""
        gateway = self.gateways.pop(name)
        gateway.gone = True
        gateway.link.end(self.rng)
        self.on_sent(gateway.link.out)
        for worker in self.workers.values():
            ours = worker.gateways.get(name)
            if ours is not None and ours.link.out.receiver is gateway:
                self.disconnect(ours.link)
        return [request_id for request_id, reader in self.clients.readers.items() if reader is gateway]

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
        self.router.gone = True
        for link in self._router_links().values():
            self.disconnect(link)
            link.out.take(link.out.arrived)  # the new process does not read what the former one had
        if not down_s:
            self.on_router_up()

    def on_router_up(self) -> None:
        """The router can be reached."""
        self.router.gone = False
        for name, link in self._router_links().items():
            if frozenset((name, "router")) not in self.cut:
                self.connect(link)

    def _router_links(self) -> dict[str, Link]:
        """The links of workers and gateways to the router, by name."""
        workers = {name: worker.link for name, worker in self.workers.items()}
        return workers | {name: gateway.link for name, gateway in self.gateways.items()}

    def cut_link(self, one: str, other: str) -> None:
        """Nothing passes between two processes, of which one is a gateway or the router."""
        self.cut.add(frozenset((one, other)))
        if (link := self._link(one, other)) is not None:
            self.disconnect(link)

    def heal_link(self, one: str, other: str) -> None:
        """The link between two processes carries messages again."""
        self.cut.discard(frozenset((one, other)))
        if "router" in (one, other):
            if (link := self._link(one, other)) is not None and not self.router.gone:
                self.connect(link)
        elif one in self.workers and other in self.gateways:
            self.connect_tokens(self.workers[one], self.gateways[other])

    def _link(self, one: str, other: str) -> Link | None:
        """The link of a worker or a gateway to the router, or of a worker to a gateway."""
        process = self.workers.get(one) or self.gateways.get(one)
        if other == "router":
            return None if process is None else process.link
        ours = self.workers[one].gateways.get(other) if one in self.workers else None
        return None if ours is None else ours.link

    def break_connection(self, name: str) -> None:
        """Between a worker or a gateway and the router, both of which live; it connects again at once."""
        process = self.workers.get(name) or self.gateways[name]
        self.disconnect(process.link)
        self.connect(process.link)

    @property
    def at_rest(self) -> bool:
        """Whether neither the router, a gateway nor a worker holds anything."""
        held = any(worker.state.pool.num_in_use for worker in self.workers.values())
        held |= any(gateway.session.streams for gateway in self.gateways.values())
        return not (held or self.core.live or len(self.core.adoption.orphans) or self.network.writes)

    def check_nothing_is_held(self) -> None:
        """All pages are back, and neither the router nor a gateway remembers a request. Raises `Violation`."""
        page_checker.check_nothing_is_held(self.core, self.workers.values(), self.gateways.values())
