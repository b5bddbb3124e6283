"""The live requests: what happens to each, what that books and sends, and where waiting ones go. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from baton.protocol import messages
from baton.protocol.errors import BatonError, WorkerLost
from baton.protocol.messages import TokenOutput
from baton.protocol.request import FinishReason
from baton.router.core import ledger
from baton.router.core.commands import Command, FinishStream, SendToWorker, StreamTokens
from baton.router.core.dispatch import DecodeUnreachable, Dispatch, FoundDecode
from baton.router.core.events import (
    Adopted,
    DecodeFound,
    End,
    Event,
    Finished,
    FirstToken,
    LossReason,
    Lost,
    Message,
    MigrationEnded,
    NoReachableDecode,
    Output,
    Placed,
    Reported,
    Stopped,
)
from baton.router.core.explanation import Explanations
from baton.router.core.live_request import LiveRequest, Phase
from baton.router.core.operations import RETRY_S, Operations
from baton.router.core.request_machine import RequestMachine, UnexpectedEvent
from baton.router.core.stream import TextToken
from baton.router.core.transfers import Transfers
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.output_length import OutputLength
from baton.router.policy.placement import Place, Refuse, RoutingDecision


@dataclass(eq=False)
class Requests:
    """`events` wait for `feed`; `commands` are for the shell."""

    state: ClusterState
    dispatch: Dispatch
    transfers: Transfers
    operations: Operations
    explanations: Explanations
    output_length: OutputLength
    live: dict[str, LiveRequest]  # by request id
    refused: int = 0
    strict: bool = False  # raise for an event that no request should get, as tests want it; else it is counted
    unexpected: Counter[str] = field(default_factory=Counter)
    events: deque[tuple[str, Event]] = field(default_factory=deque)
    commands: list[Command] = field(default_factory=list)
    _machine: RequestMachine = field(init=False)

    def __post_init__(self) -> None:
        self._machine = RequestMachine(self.state)

    def add(self, live: LiveRequest) -> None:
        """A request enters the router."""
        self.dispatch.arrived(live.request.tenant)
        self.live[live.request_id] = live

    def on_worker_lost(self, worker: str, reason: LossReason) -> None:
        """The requests that the worker may hold something for lose that."""
        for live in self.live.values():
            if worker in live.holders:
                self.events.append((live.request_id, Lost(worker, reason)))

    def on_message(self, worker: str, message: Message) -> None:
        """A message about one request; it is ignored if the worker was never assigned that."""
        live = self.live.get(message.request_id)
        if live is not None and worker not in live.assignees:
            return
        unreachable = False
        match message:
            case messages.Reserved():
                self.state.grant(worker, message.reservation_id)
            case messages.ReservationRefused(reservation_id):
                self.state.refuse(worker, reservation_id)
            case messages.HandoffEnded(_, reservation_id):
                unreachable = self.transfers.unreachable(worker, reservation_id)
                self.commands += self.transfers.on_ended(worker, message)
            case messages.HandoffStalled(_, reservation_id):
                self.transfers.on_stalled(worker, reservation_id)
        self.events.append((message.request_id, Reported(worker, message, unreachable)))

    def on_tokens(self, worker: str, request_id: str, outputs: Iterable[TokenOutput], now: float) -> None:
        """Tokens of one request; they are ignored if the worker was never assigned that, or its stream has ended."""
        live = self.live.get(request_id)
        if live is None or live.closed or worker not in live.assignees:
            return
        if live.phase is Phase.PREFILLING:
            self._advance(request_id, FirstToken(worker), now)
        tokens: list[TextToken] = []
        for output in outputs:
            tokens += live.stream.accept(output)
        if not tokens:
            return
        live.on_tokens(len(tokens), now)
        self.dispatch.fairness.charge(live.request.tenant, output_tokens=len(tokens))
        if not live.pinned:
            self.commands.append(StreamTokens(request_id, tokens))
        if live.stream.stop_string_met:
            self.events.append((request_id, Stopped(FinishReason.STOP, None)))
        elif live.stream.finish is not None:
            finisher = worker if output.finish is not None else None  # None: its token had come early
            self.events.append((request_id, Finished(live.stream.finish, finisher)))

    def feed(self, now: float) -> None:
        """Handle every waiting event, in the order in which they came, and those that follow from them."""
        while self.events:
            request_id, event = self.events.popleft()
            self._advance(request_id, event, now)

    def place(self, now: float) -> bool:
        """Carry out placement decisions about waiting requests; False when there is none."""
        verdicts = self.dispatch.next(now)
        for verdict in verdicts:
            match verdict:
                case Place(request_id, decision):
                    self._route(self.live[request_id], decision, now)
                case Refuse(request_id, error):
                    self.refused += 1
                    self.events.append((request_id, Stopped(None, error)))
                case FoundDecode(request_id, worker):
                    self.events.append((request_id, DecodeFound(worker)))
                case DecodeUnreachable(request_id):
                    self.events.append((request_id, NoReachableDecode()))
        return bool(verdicts)

    def _route(self, live: LiveRequest, decision: RoutingDecision, now: float) -> None:
        self.dispatch.fairness.charge(live.request.tenant, prompt_tokens=live.num_tokens)
        output = live.prediction.distribution
        self.explanations.decided(live.request_id, self.dispatch.placement.name, decision, output)
        self._advance(live.request_id, Placed(decision), now)

    def _advance(self, request_id: str, event: Event, now: float) -> None:
        """One event of a request: its new state, what is booked and waited for by it, and what goes out."""
        live = self.live.get(request_id)
        if isinstance(event, Adopted) and (live is None or live.closed):
            self.commands.append(SendToWorker(event.worker, messages.Cancel(request_id)))
        if live is None:
            return
        waited = live.waits_for
        try:
            outputs = self._machine.on_event(live, event, now)
        except UnexpectedEvent as error:
            if self.strict:
                raise
            self.unexpected[error.message] += 1
            return
        ledger.update(live, self.state, now)
        wait = live.waits_for
        if wait is None and waited is not None:
            self.dispatch.withdraw(request_id)
        elif wait is not None and wait != waited:
            self.dispatch.wait_for(wait, live.placement_input)
        for output in outputs:
            self._perform(live, output, now)
        if live.pinned and live.phase is Phase.QUEUED:
            self.events.append((request_id, Stopped(None, WorkerLost("The worker was lost."))))
        if live.phase is Phase.CLOSED:
            del self.live[request_id]
            self.dispatch.forget(request_id, live.request.tenant)

    def _perform(self, live: LiveRequest, output: Output, now: float) -> None:
        match output:
            case SendToWorker():
                self.commands += self.transfers.outgoing(output, live.target or "")
            case MigrationEnded(worker, reason):
                live.stays_until_s = now + RETRY_S if worker is None else 0.0
                self.operations.on_migration_ended(live.request_id, worker, reason, now)
            case End(reason, error):
                self._close(live, reason, error, now)

    def _close(self, live: LiveRequest, reason: FinishReason | None, error: BatonError | None, now: float) -> None:
        completion = live.complete(error, reason)
        if live.pinned:
            self.operations.on_probe_ended(completion, now)
            return
        if error is None:
            self.output_length.observe(live.prediction, completion.output_tokens, reason is FinishReason.LENGTH)
        self.explanations.ended(completion)
        self.commands.append(FinishStream(completion))
