"""A whole cluster in virtual time: the real router core over simulated workers, fed with a trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from baton.config.schema import RouterSection
from baton.engine.batch import StepBudget
from baton.engine.kv_pages import PagePool
from baton.protocol.errors import BatonError, InternalError
from baton.protocol.messages import RouterMessage, WorkerMessage
from baton.protocol.request import Objectives, Request, SamplingParams
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo
from baton.router.core.commands import Command, FinishStream, SendToWorker
from baton.router.core.core import RouterCore
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.latency_model import DEFAULT_COSTS, StepCosts
from baton.router.policy.placement import Placement
from baton.simulator.events import Events
from baton.simulator.network import Network
from baton.simulator.result import BusyMoment, Outcome, SimulationResult, WorkerUse
from baton.simulator.timing import StepTimer
from baton.simulator.trace import TraceRequest
from baton.simulator.worker import EOS, Gaps, RoleTime, SimulatedWorker
from baton.worker.core.state import WorkerState
from baton.worker.session import WorkerSession

TICK_S = 0.1
FIRST_S = 1.0  # when the first request comes: workers register before
STUCK_S = 600.0  # in which nothing is under way though requests are live
MAX_TOKENS = 4096  # what clients allow; the trace says where an answer really ends


@dataclass(frozen=True, slots=True)
class Slo:
    """Objectives every request states: TTFT grows with its prompt."""

    ttft_s: float = 2.0
    ttft_s_per_token: float = 0.25e-3
    tpot_s: float = 0.05

    def objectives(self, prompt_tokens: int) -> Objectives:
        return Objectives(self.ttft_s + self.ttft_s_per_token * prompt_tokens, self.tpot_s)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One simulated worker."""

    role: RoleName
    timer: StepTimer
    layout: PageLayout
    chunk_tokens: int = 2048
    mixed_chunk_tokens: int = 512
    max_batch: int = 1024
    host_pages: int = 0  # slots of host memory for preempted sequences
    host_bandwidth_bytes_s: float = 50e9  # of the copies there and back


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """What is simulated. `jitter` is the standard deviation of a step time's logarithm."""

    workers: Sequence[WorkerSpec]
    slo: Slo | None = field(default_factory=Slo)
    bandwidth_bytes_s: float = 45e9  # a 400 Gbit/s network card
    latency_s: float = 100e-6
    jitter: float = 0.02
    prior: StepCosts = DEFAULT_COSTS
    max_queued: int = 1 << 20
    auto: bool = False  # the router moves workers between the pools


class Simulation:
    """One run. The same spec, placement, trace and seed give the same result."""

    def __init__(self, spec: ClusterSpec, placement: Placement, trace: Sequence[TraceRequest], seed: int = 0) -> None:
        self.spec, self.trace = spec, trace
        self.events = Events()
        self.network = Network(self.events, spec.bandwidth_bytes_s, spec.latency_s)
        limits = RouterSection(max_queued=spec.max_queued, lost_after_s=float("inf"))
        self.core = RouterCore("simulated", placement, None, limits, ClusterState(spec.prior, share_prefixes=True))
        self.core.automation.auto = spec.auto
        self.gaps = Gaps()
        self._rng = random.Random(seed)
        self._lengths: dict[str, int] = {}
        self._live: dict[str, TraceRequest] = {}
        self._outcomes: list[Outcome] = []
        self._workers: dict[str, SimulatedWorker] = {}
        self._last_arrival: BusyMoment | None = None
        self._busy: list[BusyMoment] = []
        self._ticking = False
        self._empty_ticks = 0
        agents: dict[str, SimulatedWorker] = {}
        counts: dict[RoleName, int] = {}
        for worker in spec.workers:
            counts[worker.role] = counts.get(worker.role, 0) + 1
            self._add(f"{worker.role.value}-{counts[worker.role] - 1:04d}", worker, agents)

    def _add(self, name: str, spec: WorkerSpec, agents: dict[str, SimulatedWorker]) -> None:
        budget = StepBudget(spec.chunk_tokens, spec.max_batch, spec.mixed_chunk_tokens)
        pool = PagePool(spec.layout.num_pages, spec.layout.page_size)
        agent = f"{name}:1"
        state = WorkerState(
            agent=agent,
            model_id=spec.layout.model_id,
            eos_token_ids=frozenset([EOS]),
            context_tokens=1 << 30,
            budget=budget,
            pool=pool,
            share_prefixes=True,  # a trace's tenants stand for users of one operator
            keep_ended_s=0.0,
            host_pages=spec.host_pages,
        )
        endpoint = Endpoint(agent, b"", 0, 0, spec.layout)
        info = WorkerInfo(name, "1", spec.role, 0, endpoint, spec.chunk_tokens, spec.max_batch, spec.mixed_chunk_tokens)
        worker = SimulatedWorker(
            session=WorkerSession(info, state, lambda: "2"),
            timer=spec.timer,
            events=self.events,
            network=self.network,
            lengths=self._lengths,
            to_router=self._to_router,
            peers=agents,
            rng=random.Random(self._rng.getrandbits(64)),
            jitter=self.spec.jitter,
            gaps=self.gaps,
            host_bandwidth_bytes_s=spec.host_bandwidth_bytes_s,
            since_s=FIRST_S,
        )
        self._workers[name] = agents[agent] = worker
        worker.start()

    def run(self, tell: Callable[[float, int], None] | None = None) -> SimulationResult:
        """Play the trace to its end. `tell` hears virtual seconds and requests ended, about a hundred times."""
        for number, request in enumerate(self.trace):
            self.events.at(request.arrival_s + FIRST_S, partial(self._submit, number, request))
        arrivals_s = max((request.arrival_s for request in self.trace), default=0.0)
        self.events.at(arrivals_s + FIRST_S, self._measure_use)
        every = max(1, len(self.trace) // 100)
        told = 0
        while self.events.step():
            if len(self._outcomes) >= told + every:
                told = len(self._outcomes)
                self._busy.append(self._busy_moment())
                if tell is not None:
                    tell(self.events.now, told)
        self._busy.append(self._busy_moment())
        return SimulationResult(
            outcomes=self._outcomes,
            workers=[self._use(worker) for worker in self._workers.values()],
            gaps=self.gaps,
            bytes_moved=self.network.bytes_moved,
            arrivals_s=arrivals_s,
            simulated_s=self.events.now,
            events=self.events.done,
            busy=self._busy,
            last_arrival=self._last_arrival,
        )

    def _measure_use(self) -> None:
        self._last_arrival = self._busy_moment()

    def _busy_moment(self) -> BusyMoment:
        busy, present = RoleTime(), RoleTime()
        for worker in self._workers.values():
            for total, own in ((busy, worker.busy), (present, worker.present)):
                for role, seconds in own.seconds.items():
                    total.add(role, seconds)
            present.add(worker.session.role.name, self.events.now - worker.since_s)
        return BusyMoment(self.events.now, busy.seconds, present.seconds)

    def _use(self, worker: SimulatedWorker) -> WorkerUse:
        info, pool = worker.session.info, worker.session.state.pool
        busy_s = sum(worker.busy.seconds.values())
        return WorkerUse(info.name, info.role, info.role_epoch, busy_s, worker.tokens_computed, pool.num_in_use)

    def _submit(self, number: int, traced: TraceRequest) -> None:
        request_id = f"r{number}"
        objectives = self.spec.slo.objectives(traced.prompt_tokens) if self.spec.slo else Objectives()
        sampling = SamplingParams(max_tokens=max(MAX_TOKENS, traced.output_tokens), seed=0)
        now = self.events.now
        request = Request(request_id, traced.prompt(number), sampling, now, tenant=traced.tenant, objectives=objectives)
        self._lengths[request_id] = traced.output_tokens
        self._live[request_id] = traced
        try:
            commands = self.core.submit(request, now)
        except BatonError as error:
            self._end(request_id, Outcome.refused(traced, objectives, type(error).__name__))
            return
        self._perform(commands)
        self._tick_later()

    def _tick_later(self) -> None:
        if not self._ticking and self.core.live:
            self._ticking = True
            self.events.after(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        self._empty_ticks = 0 if len(self.events) else self._empty_ticks + 1
        if self._empty_ticks * TICK_S > STUCK_S:
            raise InternalError(f"{self.core.live} requests are still live, but the simulation has no events left.")
        self._perform(self.core.tick(self.events.now))
        self._tick_later()

    def _to_router(self, worker: str, batch: list[WorkerMessage]) -> None:
        self.network.send(partial(self._on_batch, worker, batch))

    def _on_batch(self, worker: str, batch: list[WorkerMessage]) -> None:
        now = self.events.now
        commands: list[Command] = []
        for message in batch:
            commands += self.core.on_message(worker, message, now)
        self._perform(commands)

    def _perform(self, commands: Sequence[Command]) -> None:
        outgoing: dict[str, list[RouterMessage]] = {}
        for command in commands:
            if isinstance(command, SendToWorker):
                outgoing.setdefault(command.worker, []).append(command.message)
            elif isinstance(command, FinishStream):
                completion = command.completion
                traced = self._live[completion.request_id]
                objectives = self.spec.slo.objectives(traced.prompt_tokens) if self.spec.slo else Objectives()
                self._end(completion.request_id, Outcome.of(traced, objectives, completion))
        for name, batch in outgoing.items():
            self.network.send(partial(self._workers[name].receive, batch))

    def _end(self, request_id: str, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self.gaps.forget(request_id)
        del self._live[request_id]
