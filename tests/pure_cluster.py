"""A whole cluster without I/O: the real core and roles, messages and writes delivered in any order a schedule picks."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from functools import partial

from baton.config.schema import EngineSection, RouterSection
from baton.decode_worker.role import DecodeRole
from baton.engine.batch import StepBudget
from baton.engine.kv_pages import PagePool
from baton.protocol.messages import (
    Alive,
    HandoffStalled,
    Reregister,
    RouterMessage,
    SendPages,
    WorkerMessage,
)
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo
from baton.router.core.commands import Command, FinishStream, Kill, SendToWorker, StreamTokens
from baton.router.core.completion import Completion
from baton.router.core.core import RouterCore
from baton.router.core.operation import Operation, OperationSpec, Undrain
from baton.router.core.transfers import ORPHAN_S
from baton.router.core.worker_frames import WorkerFrames
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.placement import Placement
from baton.router.policy.predicted_latency import PredictedLatency
from baton.worker.core.role import SwapIn, SwapOut, WriteEnded, WritePages
from baton.worker.core.state import WorkerState
from baton.worker.session import Connect, Disconnect, Exit, NewTransport, SessionCommand, WorkerSession
from tests.plain_vocabulary import LETTERS
from tests.pure_worker import (
    CONTEXT_TOKENS,
    EOS,
    PAGE_SIZE,
    VOCAB,
    WRITE_STALL_S,
    PureWorker,
    PureWrite,
    expected_output,
)

CLAIM_WITHIN_S = 0.5  # less than `settle` waits when all is quiet
FRAMES = WorkerFrames("model", VOCAB, CONTEXT_TOKENS)


@dataclass(eq=False)
class PureCluster:
    """Everything; `step` makes one thing happen."""

    rng: random.Random
    num_pages: int = 24
    chunk_tokens: int = 8
    host_pages: int = 0
    placement: Placement = field(default_factory=PredictedLatency)
    share_prefixes: bool = False
    ends: bool = True  # the model has an end-of-sequence token and samples it soon
    split: bool = False  # ends of writes and notices may come between a step's plan and its absorption
    duplicates: float = 0.0  # share of messages that arrive twice
    core: RouterCore = field(init=False)
    workers: dict[str, PureWorker] = field(default_factory=dict)
    writes: list[PureWrite] = field(default_factory=list)
    to_kill: list[str] = field(default_factory=list)  # workers whose end the router has asked for
    routers: int = 0
    requests: dict[str, Request] = field(default_factory=dict)
    shown: dict[str, list[int]] = field(default_factory=dict)
    wanted_from: dict[str, int] = field(default_factory=dict)  # first index that the client has not got
    ended: dict[str, Completion] = field(default_factory=dict)
    now: float = 0.0
    corruption: float = 0.0  # share of the handoffs whose pages arrive corrupt, which the target notices
    corrupted: set[str] = field(default_factory=set)
    cut: set[frozenset[str]] = field(default_factory=set)  # pairs of workers between which nothing passes
    failing: float = 0.0  # share of the writes whose connection breaks, and with it those beside them
    stalled: set[str] = field(default_factory=set)  # reservations reported to the router as stalled

    def __post_init__(self) -> None:
        self.core = self._router("router", float("-inf"))

    def _router(self, router_id: str, started_s: float) -> RouterCore:
        core = RouterCore(
            router_id,
            self.placement,
            LETTERS,
            RouterSection(claim_within_s=CLAIM_WITHIN_S),
            ClusterState(share_prefixes=self.share_prefixes),
            started_s=started_s,
        )
        core.requests.strict = True
        return core

    def add(self, name: str, role: RoleName, incarnation: int = 1) -> PureWorker:
        agent = f"{name}:{incarnation}"
        state = WorkerState(
            agent,
            "model",
            frozenset([EOS] if self.ends else []),
            CONTEXT_TOKENS,
            StepBudget(self.chunk_tokens, 8),
            PagePool(self.num_pages, PAGE_SIZE),
            engine=EngineSection(write_stall_s=WRITE_STALL_S),
            share_prefixes=self.share_prefixes,
            host_pages=self.host_pages,
        )
        layout = PageLayout(self.num_pages, 1, PAGE_SIZE, 1, 1, "float32", "model")
        info = WorkerInfo(name, str(incarnation), role, 0, Endpoint(agent, b"", 0, 0, layout), self.chunk_tokens, 8)
        later = itertools.count(incarnation + 100, 100)
        worker = PureWorker(
            WorkerSession(info, state, lambda: str(next(later))), [[None] * PAGE_SIZE for _ in range(self.num_pages)]
        )
        self.workers[name] = worker
        worker.session.on_transport(info.endpoint, self.now)
        return worker

    def add_pools(self, prefill: int = 2, decode: int = 2, mixed: int = 0) -> None:
        """Workers of every role, who have joined when this returns."""
        for role, count in ((RoleName.PREFILL, prefill), (RoleName.DECODE, decode), (RoleName.MIXED, mixed)):
            for index in range(count):
                self.add(f"{role.value}-{index}", role)
        self.settle()

    def submit_any(self, count: int, prompt: int = 24, output: int = 30) -> list[Request]:
        """Requests r0, r1, … of random prompts and lengths up to so many tokens."""
        rng = self.rng
        return [
            self.submit(f"r{index}", [rng.randrange(96) for _ in range(rng.randint(1, prompt))], rng.randint(1, output))
            for index in range(count)
        ]

    def go_on(self, steps: int) -> None:
        """Time passes too, so that silent workers are given up in the middle of what others do."""
        for _ in range(steps):
            self.step()
            if self.rng.random() < 0.05:
                self.now += 0.3
                self.tick()

    def submit(self, request_id: str, prompt: Seq[int], max_tokens: int, tenant: str = "") -> Request:
        request = Request(request_id, tuple(prompt), SamplingParams(max_tokens=max_tokens), self.now, tenant=tenant)
        self.shown[request_id] = []
        self._perform(self.core.submit(request, self.now))
        self.requests[request_id] = request
        return request

    def restart_router(self) -> None:
        """The router is gone with all it knew; of what was on its way, some comes and the rest is lost."""
        self.routers += 1
        self.core = self._router(f"router-{self.routers}", self.now)
        self.to_kill.clear()
        for worker in self.workers.values():
            self._lose(worker)

    def break_connection(self, name: str) -> None:
        """Between a worker and the router, both of which live; the worker sees it after its step."""
        worker = self.workers[name]
        if worker.stepping is not None:
            self._absorb(worker)
        self._lose(worker)
        self._hear(worker, Reregister(str(worker.incarnation), ""))

    def _lose(self, worker: PureWorker) -> None:
        """Some of what is on its way between the router and a worker."""
        for _ in range(self.rng.randint(0, len(worker.inbox))):
            worker.inbox.pop()
        for _ in range(self.rng.randint(0, len(worker.outbox))):
            worker.outbox.pop(0)

    def resume(self, request_id: str) -> None:
        """The client asks for the rest of its stream; the latest tokens may not have reached it."""
        shown = self.shown[request_id]
        del shown[self.rng.randint(max(0, len(shown) - 3), len(shown)) :]
        request = replace(self.requests[request_id], arrival_s=self.now)
        self.wanted_from[request_id] = len(shown)
        emitted = tuple(shown) if self.rng.random() < 0.7 else ()
        self._perform(self.core.submit(request, self.now, emitted, bool(shown)))

    def kill(self, name: str) -> None:
        """The process is gone: its queued messages are lost, its writes never end, the router informs others."""
        worker = self.workers.pop(name)
        for write in [write for write in self.writes if write.source is worker]:
            if self._is_orphan(write):
                write.called_off, write.until_s = True, self.now + ORPHAN_S
            else:
                self.writes.remove(write)
        self.cut = {pair for pair in self.cut if name not in pair}
        self._perform(self.core.on_worker_lost(name, self.now))

    def _is_orphan(self, write: PureWrite) -> bool:
        """Whether the kernel of its dead source may deliver it, and the router can infer that."""
        agent, pages = write.command.agent, write.command.target_pages
        stalled = bool(pages) and write.source.granted_by[agent, pages[0]] in self.stalled
        away = bool(pages) and agent.rpartition(":")[0] not in self.core.state.workers
        return self._is_cut(write) and not write.landed and (stalled or away)

    def operate(self, spec: OperationSpec, operation_id: str = "") -> Operation:
        """What an operator asks."""
        operation, commands = self.core.start_operation(operation_id, spec, False, self.now)
        self._perform(commands)
        return operation

    def cancel_operation(self, operation_id: str) -> Operation:
        operation, commands = self.core.cancel_operation(operation_id, self.now)
        self._perform(commands)
        return operation

    def undrain_all(self) -> None:
        cordoned = tuple(sorted(self.core.state.cordoned & self.core.state.workers.keys()))
        if cordoned:
            self.operate(Undrain(cordoned))

    def tick(self) -> None:
        """What is due at the router and at every worker. A report that has nothing to overtake arrives at once."""
        self._perform(self.core.tick(self.now))
        for worker in self.workers.values():
            if worker.silent or worker.leaving:
                continue
            if worker.serving:
                self._tell(worker, [Alive()])
            if worker.outbox or not worker.serving:
                self._tick(worker)
            else:
                self._report(worker)
        while self.to_kill:
            name = self.to_kill.pop()
            if name in self.workers:
                self.kill(name)

    def silence(self, name: str) -> None:
        """Stop a worker in the middle of whatever it does, until the router has given it up."""
        self.workers[name].silent = True
        while name in self.core.state.workers:
            self.now += 0.1
            self.tick()

    def _reregister(self, worker: PureWorker) -> bool:
        """Leave its incarnation, once its own writes have ended."""
        if worker.session.writes_in_flight:
            return False
        while worker.notices:
            self._notify(worker)
        self._tick(worker)
        return True

    def _tick(self, worker: PureWorker) -> None:
        if worker.stepping is None:
            self._act(worker, worker.session.tick(self.now, idle=True))

    def _report(self, worker: PureWorker) -> None:
        """Its messages and a report that is due arrive at once."""
        self._tick(worker)
        while worker.outbox and self._receive(worker):
            pass

    def step(self) -> bool:
        """One randomly chosen delivery or engine step; False when nothing is left to happen."""
        actions: list[tuple[Callable[[PureWorker], bool], PureWorker]] = []
        written: list[tuple[Callable[[PureWrite], bool], PureWrite]] = []
        for worker in self.workers.values():
            if worker.silent:
                continue
            if worker.leaving:
                actions.append((self._reregister, worker))
                continue
            stepping = worker.stepping is not None
            actions += [(self._deliver, worker)] * bool(worker.inbox and not stepping)
            actions += [(self._receive, worker)] * bool(worker.outbox)
            actions += [(self._notify, worker)] * bool(worker.notices)
            actions.append((self._absorb if stepping else self._run, worker))
        self.writes = [write for write in self.writes if self.now < write.until_s]
        for write in self.writes:
            if self._is_cut(write):
                continue
            if write.called_off:
                written.append((self._arrive_late, write))
            elif not write.source.silent:
                written.append((self._write, write))
            elif not write.landed:
                written.append((self._land, write))
        either = [partial(act, worker) for act, worker in actions] + [partial(act, write) for act, write in written]
        self.rng.shuffle(either)
        self.now += 0.001
        return any(act() for act in either)

    def settle(self, limit: int = 20_000) -> None:
        """Let everything happen; nothing may go on for ever."""
        quiet = 0
        for _ in range(limit):
            quiet = 0 if self.step() else quiet + 1
            if quiet:
                self.now += 0.1
                self.tick()
            if quiet > 8:  # longer than a worker may keep silent
                return
        raise AssertionError("the cluster does not come to rest")

    def check_nothing_is_held(self) -> None:
        """All pages are back, and the router remembers no request."""
        assert self.core.live == 0
        assert len(self.core.adoption.orphans) == 0
        for worker in self.workers.values():
            worker.state.pool.check_integrity()
            assert worker.state.pool.num_in_use == 0, f"{worker.name} holds {worker.state.pool.num_in_use} pages"
            if isinstance(worker.role, DecodeRole):
                assert worker.role._swap.num_in_use == len(worker.role._swap) == 0
        for view in self.core.state.workers.values():
            assert not view.assigned
            assert not view.reserved
            assert not view.running

    def _deliver(self, worker: PureWorker) -> bool:
        message = worker.inbox.popleft()
        self._hear(worker, message)
        if self.duplicates and self.rng.random() < self.duplicates:
            self._hear(worker, message)
        return True

    def _hear(self, worker: PureWorker, message: RouterMessage) -> None:
        if isinstance(message, SendPages) and worker.serving:
            reservation = message.reservation
            for page, generation in zip(reservation.page_ids, reservation.generations, strict=True):
                worker.granted[reservation.agent, page] = generation
                worker.granted_by[reservation.agent, page] = reservation.reservation_id
        self._act(worker, worker.session.on_message(message, self.now))

    def _fail_writes(self, worker: PureWorker, agent: str) -> None:
        """The transport disconnects a peer: what it has queued may arrive all the same."""
        for write in self.writes:
            if write.source is worker and write.command.agent == agent and not write.called_off:
                write.called_off = True
                self._end(write, "peer left")

    def _end(self, write: PureWrite, error: str) -> None:
        outcome = WriteEnded(write.command.write_id, 16 * len(write.command.source_pages), 0.001, error)
        self._act(write.source, write.source.session.on_write_ended(outcome, self.now))

    def _is_cut(self, write: PureWrite) -> bool:
        target = write.command.agent.rpartition(":")[0]
        return frozenset((write.source.name, target)) in self.cut

    def _arrive_late(self, write: PureWrite) -> bool:
        self.writes.remove(write)
        if not write.landed:
            self._land_if_reachable(write)
        return True

    def _receive(self, worker: PureWorker) -> bool:
        message = worker.outbox.pop(0)
        self._tell(worker, [message])
        if self.duplicates and self.rng.random() < self.duplicates:
            self._tell(worker, [message])
        return True

    def _notify(self, worker: PureWorker) -> bool:
        notice = worker.notices.popleft()
        pages = worker.session.reserved_pages(notice.reservation_id) if notice.reservation_id in self.corrupted else ()
        for page in pages:
            worker.memory[page] = [None] * PAGE_SIZE
        self._act(worker, worker.session.on_notice(notice, len(pages), self.now))
        return True

    def _run(self, worker: PureWorker) -> bool:
        copies, plan = worker.session.plan(self.now)
        self._act(worker, copies)
        if plan is None:
            return bool(copies)
        worker.stepping = (plan, worker.execute(plan))
        if not self.split:
            self._absorb(worker)
        return True

    def _absorb(self, worker: PureWorker) -> bool:
        assert worker.stepping is not None
        (plan, result), worker.stepping = worker.stepping, None
        self._act(worker, worker.session.absorb(plan, result, self.now))
        if self.rng.random() < 0.5:
            self._report(worker)
        return True

    def _write(self, write: PureWrite) -> bool:
        """The write ends, and its source is informed."""
        error = "" if write.landed else self._land_if_reachable(write)
        if not error and self.failing and self.rng.random() < self.failing:
            return self._fail(write)
        self.writes.remove(write)
        self._end(write, error)
        return True

    def _fail(self, write: PureWrite) -> bool:
        """The connection breaks: its writes end, and none gets through before the peers are connected again."""
        source, agent = write.source, write.command.agent
        source.peers.discard(agent)
        ended = [one for one in self.writes if one.source is source and one.command.agent == agent]
        self.writes = [one for one in self.writes if one not in ended]
        for one in ended:
            if not one.called_off:
                self._end(one, "the connection broke")
        return True

    def _land(self, write: PureWrite) -> bool:
        """The bytes arrive while the source is silent."""
        return not self._land_if_reachable(write)

    def _land_if_reachable(self, write: PureWrite) -> str:
        """Put the bytes and the notice at the target, whose pages must be those granted; returns an error."""
        source, command = write.source, write.command
        target = next((worker for worker in self.workers.values() if worker.state.agent == command.agent), None)
        if target is None or (command.agent not in source.peers and not write.called_off):
            return "unreachable"
        pool = target.state.pool
        for ours, theirs in zip(command.source_pages, command.target_pages, strict=True):
            handed_on = pool.generation(theirs) != source.granted[command.agent, theirs]
            assert not handed_on, f"{source.name} writes into a page of {target.name} that has another owner"
            assert pool._references[theirs], f"{source.name} writes into a page of {target.name} that no sequence holds"
            assert source.state.pool._references[ours] or write.called_off, f"{source.name} sends a page it gave back"
            target.memory[theirs] = list(source.memory[ours])
        if command.notice is not None:
            target.notices.append(command.notice)
            if self.corruption and self.rng.random() < self.corruption:
                self.corrupted.add(command.notice.reservation_id)
        write.landed = True
        return ""

    def _act(self, worker: PureWorker, commands: Seq[SessionCommand]) -> None:
        for command in commands:
            match command:
                case WritePages():
                    self.writes.append(PureWrite(worker, command))
                case SwapOut(pages, slots):
                    for page, slot in zip(pages, slots, strict=True):
                        worker.host[slot] = list(worker.memory[page])
                case SwapIn(slots, pages):
                    for slot, page in zip(slots, pages, strict=True):
                        worker.memory[page] = list(worker.host[slot])
                case Connect(endpoint):
                    worker.peers.add(endpoint.agent)
                case Disconnect(agent):
                    worker.peers.discard(agent)
                    self._fail_writes(worker, agent)
                case NewTransport(agent):
                    self.writes = [write for write in self.writes if write.source is not worker]
                    for memory in (worker.peers, worker.granted, worker.notices):
                        memory.clear()
                    endpoint = replace(worker.session.info.endpoint, agent=agent)
                    worker.session.on_transport(endpoint, self.now)
                case Exit(reason):
                    raise AssertionError(reason)

    def _tell(self, worker: PureWorker, messages: Seq[WorkerMessage]) -> None:
        if messages:
            incarnation = str(worker.incarnation)
            FRAMES.check(worker.name, incarnation, messages, self.core.state)  # an honest worker is never refused
            self.stalled |= {one.reservation_id for one in messages if isinstance(one, HandoffStalled)}
            self._perform(self.core.on_frame(worker.name, incarnation, messages, self.now))

    def cancel(self, request_id: str, error: Exception) -> None:
        self._perform(self.core.stop(request_id, error, self.now))  # type: ignore[arg-type]

    def expected(self, request: Request) -> list[int]:
        return expected_output(request, self.ends)

    def _perform(self, commands: Seq[Command]) -> None:
        for command in commands:
            match command:
                case SendToWorker(name, message):
                    if name in self.workers:
                        self.workers[name].inbox.append(message)
                case StreamTokens(request_id, tokens):
                    assert request_id not in self.ended, "a token after the end"
                    for token in tokens:
                        if token.index < self.wanted_from.get(request_id, 0):
                            continue  # the server sends no token to the client twice
                        assert token.index == len(self.shown[request_id]), "a gap or a repeat"
                        self.shown[request_id].append(token.token_id)
                case Kill(name):
                    self.to_kill.append(name)
                case FinishStream(completion):
                    assert completion.request_id not in self.ended, "ended twice"
                    self.ended[completion.request_id] = completion
