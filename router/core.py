"""The router's decisions: what it believes of the cluster, which request goes where, what each client sees.

Pure: every method takes what happened and the time, and returns commands for the shell (router/driver.py) to perform.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from cluster.errors import BatonError, DeadlineExceeded, InvalidRequest, NoWorkers, PromptTooLong, error_from_name
from cluster.latency import Latency
from cluster.messages import (
    Cancel,
    Goodbye,
    HandoffEnded,
    LoadReport,
    PagesChanged,
    PeerJoined,
    PeerLeft,
    Prefill,
    Register,
    Release,
    RequestFailed,
    ReservationRefused,
    Reserve,
    Reserved,
    ResyncPages,
    SendPages,
    StepOutput,
    TokenOutput,
    Welcome,
    WorkerMessage,
)
from cluster.prefix_hash import page_hashes, root_hash
from cluster.request import FinishReason, Request
from cluster.routing import RoutingDecision
from cluster.worker import RoleName
from router import lifecycle
from router.commands import Close, Command, Show, Tell
from router.detokenizer import Decode
from router.explanation import Explanations
from router.policy.admission import refuse_full
from router.policy.cluster_state import ClusterState, RunningSequence
from router.policy.fairness import VirtualTokenCounter
from router.policy.output_length import OutputLength, Prediction, chain_nodes
from router.policy.placement import Place, Placement, PlacementInput
from router.policy.prefix_index import page_keys
from router.record import Record
from router.stream import OutputStream, TextToken


_request_id = attrgetter("request_id")


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """Bounds of what the router holds and waits for."""

    max_queued: int = 4096
    report_interval_s: float = 0.5
    lost_after_s: float = 15.0  # silence after which a worker counts as gone


@dataclass(eq=False)
class RouterCore:
    """Events in, commands out; the same events at the same times give the same commands."""

    router_id: str
    placement: Placement
    decode: Decode | None  # token ids to text; None where nobody reads it
    limits: RouterLimits = field(default_factory=RouterLimits)
    state: ClusterState = field(default_factory=ClusterState)
    output_length: OutputLength = field(default_factory=OutputLength)
    fairness: VirtualTokenCounter = field(default_factory=VirtualTokenCounter)
    explanations: Explanations = field(default_factory=Explanations)
    finished_requests: int = 0
    failed_requests: int = 0
    refused_requests: int = 0
    _records: dict[str, Record] = field(default_factory=dict)
    _queue: dict[str, PlacementInput] = field(default_factory=dict)  # request id → request, until it is placed
    _moved: bool = True  # something placement depends on has changed since it was last asked
    _seeking: dict[str, str | None] = field(default_factory=dict)  # request id → decode worker to avoid
    _events: deque[tuple[str, lifecycle.Event]] = field(default_factory=deque)
    _commands: list[Command] = field(default_factory=list)

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def live(self) -> int:
        return len(self._records)

    def submit(self, request: Request, now: float) -> list[Command]:
        """Take on a request; raises (and changes nothing) when it cannot be served."""
        if request.request_id in self._records:
            raise InvalidRequest(f"Request id {request.request_id!r} is in use by a live request; choose another.")
        self._check_capacity(request)
        if len(self._queue) >= self.limits.max_queued:
            raise refuse_full(len(self._queue), now - min(item.arrival_s for item in self._queue.values()))
        life = lifecycle.lifecycle(request.request_id)
        keys = self._page_keys(request)
        record = Record(
            request, life, OutputStream(request, self.decode), Latency(now), keys, self._predict(request, keys)
        )
        self.fairness.on_queued(request.tenant, [other.request.tenant for other in self._records.values()])
        self._records[request.request_id] = record
        self._perform(record, next(life))
        return self._settle(now)

    def _page_keys(self, request: Request) -> tuple[int, ...]:
        """The prompt's pages as the prefix index names them. All workers have the same model and page size."""
        layout = next(iter(self.state.workers.values())).info.endpoint.layout
        return page_keys(page_hashes(request.prompt, layout.page_size, root_hash(layout.model_id)))

    def _predict(self, request: Request, keys: tuple[int, ...]) -> Prediction:
        page_size = next(iter(self.state.workers.values())).info.page_size
        nodes = chain_nodes(keys, page_size)
        return self.output_length.predict(nodes, request.tenant, len(request.prompt), request.sampling.max_tokens)

    def _check_capacity(self, request: Request) -> None:
        if not self.state.pool(RoleName.DECODE, RoleName.MIXED):
            raise NoWorkers("No worker that decodes is registered; start one or wait until it has loaded the model.")
        capacity = max(view.info.capacity_tokens for view in self.state.workers.values())
        if request.max_total_tokens > capacity:
            raise PromptTooLong(
                f"Prompt and max_tokens come to {request.max_total_tokens} tokens; the largest worker's pages hold "
                f"{capacity}. Ask for fewer tokens or give the workers more pages."
            )

    def stop(self, request_id: str, error: BatonError, now: float) -> list[Command]:
        """Nobody wants the request any more (the client left, its deadline passed)."""
        self._events.append((request_id, lifecycle.Stopped(None, error)))
        return self._settle(now)

    def tick(self, now: float) -> list[Command]:
        """Deadlines, and workers that fell silent. Call it a few times a second."""
        for request_id, record in self._records.items():
            deadline = record.request.deadline_s
            if deadline is not None and now >= deadline and not record.closed:
                error = DeadlineExceeded("The deadline passed before the answer was complete.")
                self._events.append((request_id, lifecycle.Stopped(None, error)))
        silent = [view.name for view in self.state.workers.values() if now - view.heard_s > self.limits.lost_after_s]
        for name in sorted(silent):
            self._lose(name)
        self.state.prefix_index.sweep()
        self._moved = True
        return self._settle(now)

    def on_worker_lost(self, worker: str, now: float) -> list[Command]:
        """A worker is known to be gone."""
        self._lose(worker)
        return self._settle(now)

    def on_message(self, worker: str, message: WorkerMessage, now: float) -> list[Command]:
        """What a registered worker says; anything but `Register` from an unknown one is ignored."""
        if isinstance(message, Register):
            self._register(message, now)
        elif worker in self.state.workers:
            self.state.workers[worker].heard_s = now
            self._on_worker_message(worker, message, now)
        return self._settle(now)

    def _on_worker_message(self, worker: str, message: WorkerMessage, now: float) -> None:
        match message:
            case StepOutput(tokens):
                for request_id, outputs in groupby(tokens, _request_id):
                    self._on_tokens(worker, request_id, outputs, now)
            case LoadReport(load):
                self.state.report(load, now)
                self._moved = True
                self._seeking = {
                    request_id: avoid if avoid != worker else None for request_id, avoid in self._seeking.items()
                }
            case PagesChanged():
                if not self.state.on_pages(worker, message):
                    self._commands.append(Tell(worker, ResyncPages()))
            case Reserved(reservation):
                self._events.append((reservation.request_id, lifecycle.PagesReserved(reservation)))
            case ReservationRefused(reservation_id, request_id, _):
                self.state.unreserve(worker, reservation_id)
                self._events.append((request_id, lifecycle.PagesRefused(reservation_id)))
            case HandoffEnded(request_id, reservation_id, outcome, report, reason):
                self._events.append((request_id, lifecycle.SourceEnded(reservation_id, outcome, report, reason)))
            case RequestFailed(request_id, error, text):
                self._events.append((request_id, lifecycle.Failed(error_from_name(error, text))))
            case Goodbye():
                self._lose(worker)

    def _on_tokens(self, worker: str, request_id: str, outputs: Iterable[TokenOutput], now: float) -> None:
        record = self._records.get(request_id)
        if record is None or record.closed:
            return
        if record.prefilling:
            record.prefilling = False
            self._moved = True
            self.state.unassign(record.prefill_worker, request_id, now)
        tokens: list[TextToken] = []
        for output in outputs:
            tokens += record.stream.accept(output)
        if not tokens:
            return
        record.latency.on_tokens(len(tokens), now)
        self.fairness.charge(record.request.tenant, output_tokens=len(tokens))
        if record.sequence is not None:
            record.sequence.emitted += len(tokens)
        self._commands.append(Show(request_id, tokens))
        if record.stream.stop_string_met:
            self._events.append((request_id, lifecycle.Stopped(FinishReason.STOP, None)))
        elif record.stream.finish is not None:
            finisher = worker if output.finish is not None else None  # None: its token had come early
            self._events.append((request_id, lifecycle.Finished(record.stream.finish, finisher)))

    def _register(self, message: Register, now: float) -> None:
        info = message.info
        if info.name in self.state.workers:
            self._lose(info.name)
        self._commands.append(Tell(info.name, Welcome(self.router_id, self.limits.report_interval_s)))
        for other in self.state.pool(*type(info.role)):
            self._commands.append(Tell(other.name, PeerJoined(info.endpoint)))
            self._commands.append(Tell(info.name, PeerJoined(other.info.endpoint)))
        self.state.register(info, now)
        self._moved = True

    def _lose(self, worker: str) -> None:
        view = self.state.remove(worker)
        if view is None:
            return
        self._moved = True
        for other in sorted(self.state.workers):
            self._commands.append(Tell(other, PeerLeft(view.info.endpoint.agent)))
        for record in self._records.values():
            if record.concerns(worker):
                self._events.append((record.request_id, lifecycle.Lost(worker)))

    def _settle(self, now: float) -> list[Command]:
        """Feed every event to its life cycle and place what can be placed, until nothing moves."""
        while True:
            while self._events:
                request_id, event = self._events.popleft()
                self._advance(request_id, event)
            if not self._place(now):
                commands, self._commands = self._commands, []
                return commands

    def _advance(self, request_id: str, event: lifecycle.Event) -> None:
        record = self._records.get(request_id)
        if record is None:
            return
        try:
            self._perform(record, record.life.send(event))
        except StopIteration as stop:
            self._perform(record, stop.value)
            self._forget(record)

    def _forget(self, record: Record) -> None:
        del self._records[record.request_id]
        self._withdraw(record.request_id)
        self._clear(record)
        for reservation_id, worker in record.reserved_on.items():
            self.state.unreserve(worker, reservation_id)
        self._moved = True

    def _withdraw(self, request_id: str) -> None:
        """Stop looking for workers."""
        self._seeking.pop(request_id, None)
        self._queue.pop(request_id, None)

    def _clear(self, record: Record) -> None:
        """Nothing of an attempt counts in the ledger any more."""
        now = record.latency.last_token_s or record.latency.arrival_s
        self.state.unassign(record.prefill_worker, record.request_id, now)
        self.state.forget(record.decode_worker, record.request_id)
        record.sequence, record.prefilling = None, False

    def _place(self, now: float) -> bool:
        """Place queued requests in order, and find decode workers for those whose prefill is under way."""
        if not self._moved:
            return False
        for request_id, avoid in list(self._seeking.items()):
            record = self._records[request_id]
            worker = self.placement.find_decode(self._placement_input(record), self.state, avoid, now)
            if worker is not None:
                del self._seeking[request_id]
                self._events.append((request_id, lifecycle.DecodeFound(worker)))
                return True
        verdicts = []
        if self._queue:
            verdicts = self.placement.decide(self.fairness.order(list(self._queue.values())), self.state, now)
        for verdict in verdicts:
            item = self._queue.pop(verdict.request_id)
            if isinstance(verdict, Place):
                self._route(self._records[verdict.request_id], item, verdict.decision, now)
            else:
                self.refused_requests += 1
                self._events.append((verdict.request_id, lifecycle.Stopped(None, verdict.error)))
        self._moved = bool(verdicts)
        return self._moved

    def _route(self, record: Record, item: PlacementInput, decision: RoutingDecision, now: float) -> None:
        record.prefill_worker = decision.prefill
        record.decode_worker = decision.prefill if decision.whole else ""
        record.attempts += 1
        if record.latency.routed_s is None:
            record.latency.routed_s = now
        self.fairness.charge(record.request.tenant, prompt_tokens=item.num_tokens)
        self.explanations.decided(record.request_id, self.placement.name, decision, item.output)
        self.state.assign(decision.prefill, record.request_id, item.num_tokens, item.page_keys, now)
        record.prefilling = True
        record.sequence = RunningSequence(item.num_tokens, item.output, record.request.objectives.tpot_s)
        if decision.whole:
            self.state.expect(decision.prefill, record.request_id, record.sequence)
        self._events.append((record.request_id, lifecycle.Routed(decision)))

    def _placement_input(self, record: Record) -> PlacementInput:
        request, emitted = record.request, len(record.stream.token_ids)
        return PlacementInput(
            request_id=request.request_id,
            num_tokens=len(request.prompt) + emitted,
            max_new_tokens=request.sampling.max_tokens - emitted,
            page_keys=record.page_keys,
            output=record.prediction.distribution,
            objectives=request.objectives,
            arrival_s=record.latency.arrival_s,
            priority=request.priority,
            tenant=request.tenant,
            resumed=emitted > 0 or record.attempts > 0,
        )

    def _perform(self, record: Record, effects: Sequence[lifecycle.Effect]) -> None:
        request, request_id = record.request, record.request_id
        for effect in effects:
            match effect:
                case lifecycle.Route():
                    self._withdraw(request_id)
                    self._clear(record)
                    self._queue[request_id] = self._placement_input(record)
                    self._moved = True
                case lifecycle.FindDecode(avoid):
                    self._seeking[request_id] = avoid
                    self._moved = True
                case lifecycle.StartPrefill(worker, hand_off):
                    record.resumed = tuple(record.stream.token_ids)
                    message = Prefill(request, record.resumed, hand_off, self._epoch(worker))
                    self._commands.append(Tell(worker, message))
                case lifecycle.ReservePages(worker, reservation_id):
                    self._reserve(record, worker, reservation_id)
                case lifecycle.StartHandoff(source, reservation):
                    self._commands.append(Tell(source, SendPages(request_id, reservation)))
                case lifecycle.CancelWork(worker):
                    self._commands.append(Tell(worker, Cancel(request_id)))
                case lifecycle.ReleasePages(worker, reservation_id):
                    self.state.unreserve(worker, reservation_id)
                    self._commands.append(Tell(worker, Release(reservation_id)))
                case lifecycle.End():
                    self._close(record, effect)

    def _reserve(self, record: Record, worker: str, reservation_id: str) -> None:
        self.state.forget(record.decode_worker, record.request_id)
        record.decode_worker = worker
        record.reserved_on[reservation_id] = worker
        view = self.state.workers.get(worker)
        page_size = view.info.page_size if view else 1
        self.state.reserve(worker, reservation_id, -(-record.num_prefill_tokens // page_size))
        if record.sequence is not None:
            self.state.expect(worker, record.request_id, record.sequence)
        message = Reserve(reservation_id, record.request, record.resumed, self._epoch(worker))
        self._commands.append(Tell(worker, message))

    def _epoch(self, worker: str) -> int:
        view = self.state.workers.get(worker)
        return view.load.role_epoch if view else 0

    def _close(self, record: Record, end: lifecycle.End) -> None:
        record.closed = True
        self._withdraw(record.request_id)
        self.finished_requests += end.error is None
        self.failed_requests += end.error is not None
        completion = record.complete(end)
        if end.error is None:
            self.output_length.observe(record.prediction, completion.output_tokens)
        self.explanations.ended(completion)
        self._commands.append(Close(completion))
