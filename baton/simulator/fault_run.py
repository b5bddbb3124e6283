"""Plays one schedule of faults on a virtual cluster, and checks what the cluster promises.

Clients ask again when they were refused, or their connection broke. After the last fault everything is healed;
then every request has to end, and nothing may be held.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from baton.protocol.errors import BatonError, Cancelled, HandoffFailed, NoWorkers, WorkerLost
from baton.protocol.worker import RoleName
from baton.router.core.operation import Drain, Migrate, OperationSpec, Rebalance, Undrain
from baton.router.core.transfers import ORPHAN_S, RELINK_AFTER_S
from baton.router.policy.predicted_latency import PredictedLatency
from baton.simulator.cluster import CLAIM_WITHIN_S
from baton.simulator.faults import OF_RANKS, Arrival, Fault, FaultKind, Schedule
from baton.simulator.simulation import Slo
from baton.simulator.timed_cluster import SLOWER, TimedCluster
from baton.simulator.timing import Timing
from baton.simulator.token_checker import Violation
from baton.simulator.virtual_gateway import VirtualGateway
from baton.simulator.virtual_worker import VirtualWorker

JOINED_S = 0.5  # when the first request may come: workers register before
RETRY_S = 0.3  # until a client asks again
RESUME_S = 1.0  # within which clients ask for the rest when their connection breaks
REST_S = 0.1  # between two looks at whether the cluster has come to rest
PATIENCE_S = 60.0  # within which every request has to end after that
CORRUPT, LOST, TWICE, BREAKS = 0.3, 0.3, 0.2, 0.1  # shares of handoffs, notices, deliveries, writes
SLO = Slo()
CRASHES = frozenset(
    {FaultKind.KILL, FaultKind.STOP, FaultKind.PAUSE, FaultKind.ROUTER, FaultKind.BOTH, FaultKind.CUT, FaultKind.PART}
    | OF_RANKS
)
CAUSES = {  # errors with which a request may end, and the faults that one of them takes
    HandoffFailed: frozenset({FaultKind.CORRUPT, FaultKind.FAIL}),
    WorkerLost: CRASHES,
    NoWorkers: CRASHES,
}


@dataclass(frozen=True, slots=True)
class FaultResult:
    """How a schedule went. `failure` is empty if every promise was kept."""

    schedule: Schedule
    failure: str
    errors: tuple[str, ...] = ()  # with which requests ended
    met: int = 0  # requests that met the objectives
    tokens: int = 0
    longest_pauses_s: tuple[float, ...] = ()  # of each client's stream, or before it
    simulated_s: float = 0.0


@dataclass(eq=False)
class FaultRun:
    """One schedule on its cluster."""

    schedule: Schedule
    timing: Timing = field(default_factory=Timing)
    cluster: TimedCluster = field(init=False)
    arrivals: dict[str, Arrival] = field(init=False)
    gone: set[str] = field(default_factory=set)  # requests whose clients have left

    def __post_init__(self) -> None:
        schedule = self.schedule
        self.cluster = TimedCluster(
            random.Random(schedule.seed),
            schedule.num_pages,
            host_pages=schedule.host_pages,
            placement=PredictedLatency(),
            ends=schedule.ends,
            timing=self.timing,
            num_gateways=schedule.gateways,
            ranks=schedule.ranks,
            num_kv_heads=schedule.kv_heads,
        )
        self.arrivals = {arrival.request_id: arrival for arrival in schedule.arrivals}
        self.cluster.clients.on_refused = self._on_refused

    def run(self) -> None:
        """Play the schedule to its end. Raises `Violation`."""
        cluster, schedule = self.cluster, self.schedule
        for name, role in schedule.workers:
            cluster.start(name, role)
        for arrival in schedule.arrivals:
            cluster.events.at(JOINED_S + arrival.at_s, partial(self._submit, arrival))
        for fault in schedule.faults:
            cluster.events.at(JOINED_S + fault.at_s, partial(self._begin, fault))
        healed_s = JOINED_S + max((fault.at_s + fault.for_s for fault in schedule.faults), default=0.0)
        cluster.run_until(healed_s + 0.1)
        self._heal()
        cluster.run_until(healed_s + PATIENCE_S, self._all_ended)
        self._come_to_rest()
        self._check()

    def _gateway(self) -> VirtualGateway | None:
        """A gateway that answers, from the client's point of view."""
        found = [gateway for gateway in self.cluster.gateways.values() if not gateway.blocked]
        return self.cluster.rng.choice(found) if found else None

    def _submit(self, arrival: Arrival) -> None:
        cluster, request_id = self.cluster, arrival.request_id
        if request_id in self.gone:
            return
        if (gateway := self._gateway()) is None:
            cluster.events.after(RETRY_S, partial(self._submit, arrival))
        else:
            cluster.submit(request_id, arrival.prompt, arrival.max_tokens, gateway=gateway.name)

    def _on_refused(self, request_id: str) -> None:
        """The client asks again after a while."""
        self.cluster.events.after(RETRY_S, partial(self._submit, self.arrivals[request_id]))

    def _lose(self, request_ids: Iterable[str]) -> None:
        """The connections of clients break: each resumes at some gateway."""
        cluster = self.cluster
        for request_id in request_ids:
            if request_id in cluster.clients.readers:
                cluster.lose(request_id)
                cluster.events.after(cluster.rng.uniform(0.0, RESUME_S), partial(self._resume, request_id))

    def _resume(self, request_id: str) -> None:
        if request_id in self.gone:
            return
        if (gateway := self._gateway()) is None:
            self.cluster.events.after(RETRY_S, partial(self._resume, request_id))
        else:
            self.cluster.resume(request_id, gateway.name)

    def _begin(self, fault: Fault) -> None:
        """The fault begins; on a process that has ended it does nothing."""
        cluster, network, subjects = self.cluster, self.cluster.network, fault.subjects
        process = self._process(fault)
        match fault.kind:
            case FaultKind.KILL if process is not None:
                cluster.end_process(subjects[0], fault.for_s)
            case FaultKind.GATEWAY | FaultKind.BOTH if process is not None:
                self._lose(cluster.end_gateway(subjects[0], fault.for_s))
            case FaultKind.STOP | FaultKind.HALT if process is not None:
                cluster.stop(process, True)
            case FaultKind.SLOW if isinstance(process, VirtualGateway):
                process.slow = SLOWER
            case FaultKind.CUT | FaultKind.PAIR:
                network.cut.add(frozenset(subjects))
            case FaultKind.LAG:
                network.slow.add(frozenset(subjects))
            case FaultKind.RANK if isinstance(process, VirtualWorker):
                cluster.end_rank(process, fault.rank, fault.for_s)
            case FaultKind.REST if isinstance(process, VirtualWorker):
                cluster.stop_rank(process, fault.rank, True)
            case FaultKind.PART:
                cluster.cut_link(subjects[0], "router")
            case FaultKind.TOKENS:
                cluster.cut_link(*subjects)
            case FaultKind.PAUSE:
                cluster.pause_router(fault.for_s)
            case FaultKind.BREAK if process is not None and not process.silent:
                cluster.break_connection(subjects[0])
            case FaultKind.MOVE:
                self._lose(subjects)
            case FaultKind.FAIL:
                network.failing = BREAKS
            case FaultKind.CORRUPT:
                network.corruption = CORRUPT
            case FaultKind.LOSE:
                network.losing = LOST
            case FaultKind.DUPLICATE:
                cluster.duplicates = TWICE
            case FaultKind.CANCEL:
                self.gone.update(subjects)
                for request_id in subjects:
                    cluster.cancel(request_id, Cancelled("the client has left"))
            case FaultKind.DRAIN | FaultKind.UNDRAIN | FaultKind.REBALANCE | FaultKind.MIGRATE:
                self._operate(fault)
        if fault.kind in (FaultKind.ROUTER, FaultKind.BOTH):
            cluster.restart_router(fault.for_s)
        if fault.for_s:
            cluster.events.after(fault.for_s, partial(self._end, fault, process))

    def _process(self, fault: Fault) -> VirtualWorker | VirtualGateway | None:
        """The first process that a fault is about."""
        return self.cluster.workers.get(fault.process) or self.cluster.gateways.get(fault.process)

    def _end(self, fault: Fault, process: VirtualWorker | VirtualGateway | None) -> None:
        cluster, network = self.cluster, self.cluster.network
        match fault.kind:
            case FaultKind.STOP | FaultKind.HALT if process is not None:
                cluster.stop(process, False)
            case FaultKind.SLOW if isinstance(process, VirtualGateway):
                process.slow = 1.0
            case FaultKind.CUT | FaultKind.PAIR:
                cluster.heal(*fault.subjects)
            case FaultKind.LAG:
                network.slow.discard(frozenset(fault.subjects))
            case FaultKind.REST if isinstance(process, VirtualWorker):
                cluster.stop_rank(process, fault.rank, False)
            case FaultKind.PART:
                cluster.heal_link(fault.subjects[0], "router")
            case FaultKind.TOKENS:
                cluster.heal_link(*fault.subjects)
            case FaultKind.FAIL:
                network.failing = 0.0
            case FaultKind.CORRUPT:
                network.corruption = 0.0
            case FaultKind.LOSE:
                network.losing = 0.0
            case FaultKind.DUPLICATE:
                cluster.duplicates = 0.0

    def _operate(self, fault: Fault) -> None:
        """An operator asks for it; the router may refuse."""
        try:
            if not self.cluster.router.blocked:
                self.cluster.operate(self._spec(fault))
        except BatonError:
            pass

    def _spec(self, fault: Fault) -> OperationSpec:
        match fault.kind:
            case FaultKind.DRAIN:
                return Drain(fault.subjects)
            case FaultKind.UNDRAIN:
                return Undrain(fault.subjects)
            case FaultKind.MIGRATE:
                return Migrate(fault.subjects[0])
        prefill = int(fault.subjects[0])
        return Rebalance(prefill, len(self.schedule.workers) - prefill)

    def _heal(self) -> None:
        """All faults are over: every worker serves, and some worker decodes."""
        cluster = self.cluster
        cluster.run_until(cluster.now + 5.0, lambda: len(cluster.core.state.workers) == len(self.schedule.workers))
        for operation in list(cluster.core.operations.running):
            cluster.cancel_operation(operation.operation_id)
        cluster.run_until(cluster.now + 5.0, lambda: not cluster.core.operations.running)
        cluster.undrain_all()
        roles = [view.role for view in cluster.core.state.workers.values()]
        if RoleName.DECODE not in roles and RoleName.MIXED not in roles:
            cluster.operate(Rebalance(len(roles) - 1, 1))

    def _all_ended(self) -> bool:
        return len(self.cluster.ended.keys() | self.gone) >= len(self.schedule.arrivals)

    def _come_to_rest(self) -> None:
        """Time enough for everything that is held for a while: kept sequences, orphaned writes, broken pairs."""
        cluster = self.cluster
        until_s = cluster.now + 1.0 + CLAIM_WITHIN_S
        while cluster.now < until_s and not cluster.at_rest:
            cluster.run_until(cluster.now + REST_S)
        transfers = cluster.core.membership.transfers
        for wait_s in (ORPHAN_S if len(transfers) else 0.0, RELINK_AFTER_S, RELINK_AFTER_S):
            if len(transfers) or cluster.core.state.unreachable or wait_s > RELINK_AFTER_S:
                cluster.now += wait_s
                cluster.run_until(cluster.now + 1.0)

    def _check(self) -> None:
        cluster = self.cluster
        kinds = {fault.kind for fault in self.schedule.faults}
        for arrival in self.schedule.arrivals:
            request_id = arrival.request_id
            completion = cluster.ended.get(request_id)
            if request_id in self.gone:
                pass
            elif completion is None:
                raise Violation(f"{request_id} has not ended")
            elif completion.error is not None and not kinds & CAUSES.get(type(completion.error), set()):
                raise Violation(f"{request_id} ended with {type(completion.error).__name__}: {completion.error}")
            if request_id in cluster.requests:
                cluster.clients.check(request_id, self.schedule.ends)
        cluster.check_nothing_is_held()
        for operation in cluster.core.operations.running:
            raise Violation(f"the operation to {operation.spec.title} has not ended: {operation.steps}")
        state = cluster.core.state
        if cluster.network.writes or len(cluster.core.membership.transfers) or state.unreachable or state.cut:
            raise Violation("writes are on their way, or pairs of processes unreachable, though everything is healed")


def play(schedule: Schedule, timing: Timing | None = None) -> FaultResult:
    """Play a schedule; whatever goes wrong is its `failure`."""
    run = FaultRun(schedule, timing or Timing())
    failure = ""
    try:
        run.run()
    except Exception as error:  # noqa: BLE001 (whatever it is, it is what the schedule was played for)
        failure = f"{type(error).__name__}: {error}"
    cluster = run.cluster
    return FaultResult(
        schedule,
        failure,
        tuple(type(end.error).__name__ for end in cluster.ended.values() if end.error is not None),
        sum(cluster.clients.met(one.request_id, SLO.objectives(len(one.prompt))) for one in schedule.arrivals),
        sum(map(len, cluster.shown.values())),
        tuple(cluster.clients.longest_pause_s.values()),
        cluster.now,
    )
