"""The live requests: what happens to each, what that books and sends, and where waiting ones go. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from baton.protocol import messages
from baton.protocol.errors import BatonError, Cancelled, DeadlineExceeded, WorkerLost
from baton.protocol.request import FinishReason
from baton.router.core import ledger
from baton.router.core.commands import Command, RequestCompleted, SendToGateway, SendToWorker
from baton.router.core.dispatch import DecodeUnreachable, Dispatch, FoundDecode
from baton.router.core.events import (
    Adopted,
    Claimed,
    CutOff,
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
    NoticeLost,
    Output,
    Placed,
    Reported,
    Stopped,
)
from baton.router.core.explanation import Explanations
from baton.router.core.gateways import Gateways
from baton.router.core.intake import Intake
from baton.router.core.live_request import LiveRequest, Phase
from baton.router.core.operations import RETRY_S, Operations
from baton.router.core.phases import observe
from baton.router.core.refusals import Refusals
from baton.router.core.request_machine import RequestMachine, UnexpectedEvent
from baton.router.core.transfers import Transfers
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.output_length import OutputLength
from baton.router.policy.placement import Place, Refuse, RoutingDecision

# A notice is in flight for milliseconds, and a stopped target is lost before. But NIXL may lose one with its source.
COMMIT_WITHIN_S = 5.0
WorkerMessage = messages.SequenceMessage | messages.HandoffMessage


@dataclass(eq=False)
class Requests:
    """`events` wait for `feed`; `commands` are for the shell."""

    state: ClusterState
    dispatch: Dispatch
    transfers: Transfers
    operations: Operations
    explanations: Explanations
    output_length: OutputLength
    gateways: Gateways
    intake: Intake
    claim_within_s: float
    live: dict[str, LiveRequest]  # by request id
    refused: int = 0
    refusals: Refusals = field(default_factory=Refusals)
    strict: bool = False  # raise for an event that no request should get, as tests want it; else it is counted
    unexpected: Counter[str] = field(default_factory=Counter)
    events: deque[tuple[str, Event]] = field(default_factory=deque)
    commands: list[Command] = field(default_factory=list)
    _machine: RequestMachine = field(init=False)

    def __post_init__(self) -> None:
        self._machine = RequestMachine(self.state)

    def add(self, live: LiveRequest) -> None:
        """A request enters the router."""
        self.dispatch.arrived(live.tenant)
        self.live[live.request_id] = live

    def refuse(self, request_id: str, error: BatonError, now: float) -> None:
        """End a request that no worker has."""
        self.refusals.add(request_id, self.live[request_id].gateway, error, now)
        self.events.append((request_id, Stopped(None, error)))

    def take(self, action: Command | tuple[str, Event]) -> None:
        """A command for the shell, or an event of a request."""
        if isinstance(action, tuple):
            self.events.append(action)
        else:
            self.commands.append(action)

    def on_worker_lost(self, worker: str, reason: LossReason) -> None:
        """The requests that the worker may hold something for lose that."""
        for live in self.live.values():
            if worker in live.holders:
                self.events.append((live.request_id, Lost(worker, reason)))

    def on_gateway_lost(self, gateway: str, now: float) -> None:
        """Another gateway may claim its requests for a while."""
        for live in self.live.values():
            if live.gateway == gateway and live.unclaimed_since_s is None:
                live.unclaimed_since_s = now
        if not self.claim_within_s:
            self.end_overdue(now)

    def end_overdue(self, now: float) -> None:
        """Stop requests whose deadline has passed, or whose gateway is lost and that no other one has claimed; start
        those over whose handoff does not arrive.
        """
        late = DeadlineExceeded("The deadline passed before the answer was complete.")
        left = Cancelled("Its gateway is lost, and no other one has claimed the request.")
        for live in self.live.values():
            if live.closed:
                continue
            if live.deadline_s is not None and now >= live.deadline_s:
                self.events.append((live.request_id, Stopped(None, late)))
            elif live.unclaimed_since_s is not None and now >= live.unclaimed_since_s + self.claim_within_s:
                self.events.append((live.request_id, Stopped(None, left)))
            elif live.awaits_commit and now >= live.delivered_s + COMMIT_WITHIN_S:
                self.events.append((live.request_id, NoticeLost()))

    def on_gateway_registered(self, gateway: str, incarnation: str, request_ids: Collection[str], now: float) -> None:
        """Stop what the gateway no longer has. Requests of its earlier incarnation wait to be claimed."""
        listed = frozenset(request_ids)
        gone = Cancelled("Its gateway no longer has the request.")
        for live in self.live.values():
            if live.gateway != gateway or live.closed:
                continue
            if live.gateway_incarnation != incarnation:
                live.unclaimed_since_s = now if live.unclaimed_since_s is None else live.unclaimed_since_s
            elif live.request_id not in listed:
                self.events.append((live.request_id, Stopped(None, gone)))
            elif live.unclaimed_since_s is not None:
                live.unclaimed_since_s = now  # it is about to submit it again

    def cut_off(self, gateway: str, workers: Iterable[str]) -> None:
        """The gateway's requests on these workers have to be computed elsewhere."""
        for worker in workers:
            for live in self.live.values():
                if live.gateway == gateway and worker in live.holders:
                    self.events.append((live.request_id, CutOff(worker)))

    def on_worker_message(self, worker: str, message: WorkerMessage) -> None:
        """A message about one request; it is ignored if the worker was never assigned that.

        The end of a write may be about an earlier request of the same id.
        """
        live = self.live.get(message.request_id)
        if live is not None and worker not in live.assignees:
            if isinstance(message, messages.HandoffEnded | messages.HandoffStalled):
                self._on_report(worker, message)
            return
        event: Event
        match message:
            case messages.FirstToken(_, chunk_ages_s):
                event = FirstToken(worker, chunk_ages_s)
            case messages.SequenceEnded(_, reason, num_tokens):
                event = Finished(reason, worker, num_tokens)
            case _:
                event = Reported(worker, message, self._on_report(worker, message))
        self.events.append((message.request_id, event))

    def _on_report(self, worker: str, message: Message) -> bool:
        """What the message means beside its request; whether source and target are known to be out of reach."""
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
        return unreachable

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
                    self.refuse(request_id, error, now)
                case FoundDecode(request_id, worker):
                    self.events.append((request_id, DecodeFound(worker)))
                case DecodeUnreachable(request_id):
                    self.events.append((request_id, NoReachableDecode()))
        return bool(verdicts)

    def _route(self, live: LiveRequest, decision: RoutingDecision, now: float) -> None:
        output = live.prediction.distribution
        self._charge(live, output.remaining(live.submit.num_emitted), live.num_tokens)
        self.explanations.decided(live.request_id, self.dispatch.placement.name, decision, output)
        cached = self.state.cached_on(decision.prefill, live.page_keys, live.num_tokens)
        self.explanations.totals.placed(live.num_tokens, cached)
        if live.timeline is not None:
            live.timeline.decided_by = self.dispatch.placement.name
        self._advance(live.request_id, Placed(decision), now)

    def _advance(self, request_id: str, event: Event, now: float) -> None:
        """One event of a request: its new state, what is booked and waited for by it, and what goes out."""
        live = self.live.get(request_id)
        if isinstance(event, Adopted) and (live is None or live.closed):
            self.commands.append(SendToWorker(event.worker, messages.Cancel(request_id)))
        if live is None:
            return
        waited, submit, owner = live.waits_for, live.submit, (live.gateway, live.gateway_incarnation)
        try:
            outputs = self._machine.on_event(live, event, now)
        except UnexpectedEvent as error:
            if self.strict:
                raise
            self.unexpected[error.message] += 1
            return
        if live.timeline is not None or isinstance(event, Claimed):
            observe(live, event, now)
        ledger.update(live, self.state, now)
        wait = live.waits_for
        if wait is None and waited is not None:
            self.dispatch.withdraw(request_id)
        elif wait is not None and (wait != waited or live.submit is not submit):
            self.dispatch.wait_for(wait, live.placement_input)
        for output in outputs:
            self._perform(live, output, owner, now)
        if live.pinned and live.phase is Phase.QUEUED:
            self.events.append((request_id, Stopped(None, WorkerLost("The worker was lost."))))
        if live.phase is Phase.CLOSED:
            del self.live[request_id]
            self.dispatch.forget(request_id, live.tenant)

    def _perform(self, live: LiveRequest, output: Output, owner: tuple[str, str], now: float) -> None:
        """What follows from an event; before it, `owner` was the request's gateway and its incarnation."""
        match output:
            case SendToWorker():
                self.commands += self.transfers.outgoing(output, live.target or "")
            case SendToGateway(gateway):
                now_or_before = live.gateway_incarnation if gateway == live.gateway else owner[1]
                if self.gateways.has_registered(gateway, now_or_before):
                    self.commands.append(output)
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
        self.intake.ended(live)
        if error is None:
            self.output_length.observe(live.prediction, completion.output_tokens, reason is FinishReason.LENGTH)
        self._charge(live, completion.output_tokens - live.resumed_from)
        self.explanations.ended(completion, now)
        if self.gateways.has_registered(live.gateway, live.gateway_incarnation):
            self.commands.append(SendToGateway(live.gateway, completion.message))
        self.commands.append(RequestCompleted(completion))

    def _charge(self, live: LiveRequest, output_tokens: float, prompt_tokens: int = 0) -> None:
        """Charge the tenant: with the expected output on the first placement, with what is missing at the end."""
        if prompt_tokens and live.attempts:
            output_tokens = live.charged_tokens
        self.dispatch.fairness.charge(live.tenant, prompt_tokens, output_tokens - live.charged_tokens)
        live.charged_tokens = output_tokens
