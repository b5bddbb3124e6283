"""A whole cluster in virtual time: the real router core over simulated workers, fed with a trace.

Gateways are names here: requests are theirs by turns. Tokens stay at the workers, which note when they were computed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from baton.config.schema import RouterSection
from baton.engine.batch import StepBudget
from baton.engine.kv_pages import PagePool
from baton.protocol.errors import InternalError
from baton.protocol.gateway_messages import (
    AskEmitted,
    EmittedTokens,
    GatewayInfo,
    GatewayMessage,
    RegisterGateway,
    RequestEnded,
    Submit,
)
from baton.protocol.messages import RouterMessage, Work, WorkerMessage
from baton.protocol.prefix_hash import page_hashes, page_keys, root_hash
from baton.protocol.request import DIGEST_BYTES, Objectives, Request, SamplingParams
from baton.protocol.session_messages import GatewayJoined
from baton.protocol.worker import Endpoint, PageLayout, RankAddress, RoleName, WorkerInfo
from baton.router.core.commands import Command, SendToGateway, SendToWorker
from baton.router.core.core import RouterCore
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.latency_model import DEFAULT_COSTS, StepCosts
from baton.router.policy.placement import Placement
from baton.simulator.events import Events
from baton.simulator.network import Network
from baton.simulator.result import BusyMoment, Outcome, SimulationResult, WorkerUse
from baton.simulator.timing import StepTimer
from baton.simulator.trace import TraceRequest
from baton.simulator.worker import EOS, TOKEN, Answers, RoleTime, SimulatedWorker
from baton.worker.core.state import WorkerState
from baton.worker.core.token_streams import TokenStreams
from baton.worker.session import WorkerSession

GATEWAY = "gateway-0"  # it has the first request
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
    host_bandwidth_bytes_s: float = 50e9  # of one rank's copies there and back
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """What is simulated. `jitter` is the standard deviation of a step time's logarithm."""

    workers: Sequence[WorkerSpec]
    slo: Slo | None = field(default_factory=Slo)
    bandwidth_bytes_s: float = 45e9  # of a rank: a 400 Gbit/s network card
    latency_s: float = 100e-6
    jitter: float = 0.02
    prior: StepCosts = DEFAULT_COSTS
    max_queued: int = 1 << 20
    auto: bool = False  # the router moves workers between the pools
    gateways: int = 1


class Simulation:
    """One run. The same spec, placement, trace and seed give the same result."""

    def __init__(self, spec: ClusterSpec, placement: Placement, trace: Sequence[TraceRequest], seed: int = 0) -> None:
        self.spec, self.trace = spec, trace
        self.events = Events()
        self.network = Network(self.events, spec.bandwidth_bytes_s, spec.latency_s)
        limits = RouterSection(max_queued=spec.max_queued, lost_after_s=float("inf"))
        self.core = RouterCore("simulated", placement, limits, ClusterState(spec.prior))
        self.core.automation.auto = spec.auto
        self._layout = spec.workers[0].layout
        self._root = root_hash(self._layout.model_id)
        self.answers = Answers()
        self._rng = random.Random(seed)
        self._lengths: dict[str, int] = {}
        self._live: dict[str, tuple[TraceRequest, Request]] = {}
        self._outcomes: list[Outcome] = []
        self._workers: dict[str, SimulatedWorker] = {}
        self._last_arrival: BusyMoment | None = None
        self._busy: list[BusyMoment] = []
        self._on_their_way: dict[tuple[str, float], list[RouterMessage]] = {}  # by worker and time of sending
        self._ticking = False
        self._empty_ticks = 0
        agents: dict[str, SimulatedWorker] = {}
        counts: dict[RoleName, int] = {}
        for worker in spec.workers:
            counts[worker.role] = counts.get(worker.role, 0) + 1
            self._add(f"{worker.role.value}-{counts[worker.role] - 1:04d}", worker, agents)
        for number in range(spec.gateways):
            name = f"gateway-{number}"
            self._to_core(name, RegisterGateway(GatewayInfo(name, "1", "")))

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
            host_pages=spec.host_pages,
            streams=TokenStreams(keep_ended_s=0.0),
        )
        endpoint = Endpoint(agent, spec.layout, (RankAddress(),) * spec.ranks)
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
            answers=self.answers,
            host_bandwidth_bytes_s=spec.host_bandwidth_bytes_s,
            since_s=FIRST_S,
        )
        self._workers[name] = agents[agent] = worker
        worker.start()

    def run(self, tell: Callable[[float, int], None] | None = None) -> SimulationResult:
        """Play the trace to its end. `tell` receives virtual seconds and requests ended, about a hundred times."""
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
            answers=self.answers,
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
        request_id, prompt = f"r{number}", traced.prompt(number)
        objectives = self.spec.slo.objectives(traced.prompt_tokens) if self.spec.slo else Objectives()
        sampling = SamplingParams(max_tokens=max(MAX_TOKENS, traced.output_tokens), seed=0)
        request = Request(request_id, prompt, sampling, self.events.now, tenant=traced.tenant, objectives=objectives)
        self._lengths[request_id] = traced.output_tokens
        self._live[request_id] = traced, request
        self._to_core(
            f"gateway-{number % self.spec.gateways}",
            Submit(
                request_id=request_id,
                digest=number.to_bytes(DIGEST_BYTES, "little"),
                num_prompt_tokens=len(prompt),
                max_tokens=sampling.max_tokens,
                page_keys=page_keys(page_hashes(prompt, self._layout.page_size, self._root)),
                work=Work(request),
                tenant=traced.tenant,
                objectives=objectives,
            ),
        )
        self._tick_later()

    def _to_core(self, gateway: str, message: GatewayMessage) -> None:
        """A gateway sends a message; it is beside the router."""
        self._perform(self.core.on_frame(gateway, "1", [message], self.events.now))

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
        self._perform(self.core.on_frame(worker, "1", batch, self.events.now))

    def _perform(self, commands: Sequence[Command]) -> None:
        outgoing: dict[str, list[RouterMessage]] = {}
        for command in commands:
            match command:
                case SendToWorker(_, GatewayJoined()):
                    pass  # no link to the gateway: workers keep their tokens, and `answers` counts them
                case SendToWorker(worker, message):
                    outgoing.setdefault(worker, []).append(message)
                case SendToGateway(_, RequestEnded() as end):
                    self._end(end)
                case SendToGateway(gateway, AskEmitted(request_id)):
                    self.events.after(0.0, partial(self._send_emitted, gateway, request_id))
        for name, batch in outgoing.items():
            self._send_to_worker(name, batch)

    def _send_to_worker(self, worker: str, batch: list[RouterMessage]) -> None:
        """Messages that arrive at one moment are received together: 1,000 workers register with a million of them."""
        key = worker, self.events.now
        if key in self._on_their_way:
            self._on_their_way[key] += batch
            return
        self._on_their_way[key] = batch
        self.network.send(partial(self._arrive, key))

    def _arrive(self, key: tuple[str, float]) -> None:
        self._workers[key[0]].receive(self._on_their_way.pop(key))

    def _send_emitted(self, gateway: str, request_id: str) -> None:
        """Answer the router's question for a request that it computes again."""
        if request_id in self._live:
            answer = self.answers.live.get(request_id)
            emitted = (TOKEN,) * (answer.num_tokens if answer is not None else 0)
            work = Work(self._live[request_id][1], emitted)
            self._to_core(gateway, EmittedTokens(request_id, work, len(emitted)))

    def _end(self, end: RequestEnded) -> None:
        traced, request = self._live.pop(end.request_id)
        answer = self.answers.live.pop(end.request_id, None)
        arrival_s = request.arrival_s - self.spec.latency_s  # tokens take as long from the worker to the gateway
        self._outcomes.append(Outcome.of(traced, request.objectives, end, answer, arrival_s))
