"""A router as a gateway sees it: where requests run, which end, and what it asks; it does not decide well."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from baton.protocol.gateway_messages import (
    AskEmitted,
    EmittedTokens,
    GatewayRegistered,
    Placed,
    RegisterGateway,
    RequestEnded,
    StopRequest,
    Submit,
    WorkerJoined,
    WorkerLeft,
)
from baton.protocol.messages import Work
from baton.protocol.request import Request
from tests.gateway.core.small_worker import Worker

WORKERS = ("w0", "w1")


@dataclass(eq=False)
class SmallRouter:
    """It follows the protocol and no more. `inbox` and `outbox` are its link to the gateway."""

    workers: dict[str, Worker]
    connected: bool = False
    registered: bool = False
    runs: dict[str, tuple[bytes, str]] = field(default_factory=dict)  # Digest and worker, by request id
    submissions: dict[str, int] = field(default_factory=dict)  # The latest of each request
    asked: set[str] = field(default_factory=set)  # Runs that wait for `EmittedTokens`
    kept: dict[str, tuple[str, Request]] = field(default_factory=dict)  # Sequences of an earlier router, by request id
    inbox: deque[Any] = field(default_factory=deque)
    outbox: deque[Any] = field(default_factory=deque)

    def disconnect(self, keep: int) -> None:
        """The link breaks: `keep` messages in each direction arrive, the others are lost."""
        for link in (self.inbox, self.outbox):
            while len(link) > keep:
                link.pop()
        self.connected = self.registered = False

    def restart(self) -> None:
        """Its state is lost, as are its orders; workers keep their sequences."""
        self.runs, self.asked = {}, set()
        for name, worker in self.workers.items():
            worker.orders.clear()
            self.kept |= {request_id: (name, one.asked) for request_id, one in worker.sequences.items()}

    def lose(self, worker: str) -> None:
        """A worker has started again, empty: its requests are computed elsewhere, after the gateway's answer."""
        self.answer(WorkerLeft(worker), WorkerJoined(worker))
        for request_id in [request_id for request_id, (_, name) in self.runs.items() if name == worker]:
            self.runs[request_id] = (self.runs[request_id][0], WORKERS[1 - WORKERS.index(worker)])
            self.asked.add(request_id)
            self.answer(AskEmitted(request_id))

    def route(self) -> None:
        """Handle one message of the gateway."""
        if not self.inbox:
            return
        message = self.inbox.popleft()
        if isinstance(message, RegisterGateway):
            self.registered = True
            self.answer(GatewayRegistered("r", "1"), *(WorkerJoined(worker) for worker in WORKERS))
            for request_id in [one for one in self.runs if one not in message.request_ids]:
                self.stop(request_id)
        elif not self.registered:
            return
        if isinstance(message, Submit) and self.runs.get(message.request_id, (message.digest, ""))[0] == message.digest:
            self.submissions[message.request_id] = message.submission
        match message:
            case Submit(request_id, digest) if request_id not in self.runs:
                worker, asked = self.kept.pop(request_id, ("", None))
                kept = self.workers[worker].sequences.get(request_id) if worker else None
                if kept is None or asked is None or asked.digest != digest or kept.num_tokens < message.num_emitted:
                    self.start(message, WORKERS[len(self.runs) % 2])
                else:
                    self.runs[request_id] = (digest, worker)
                    self.adopt(message, worker)
            case Submit(request_id, digest):
                worker = self.runs[request_id][1]
                if digest != self.runs[request_id][0]:
                    refusal = RequestEnded(request_id, None, "InvalidRequest", "in use")
                    self.answer(replace(refusal, submission=message.submission))
                elif request_id in self.asked:
                    self.asked.discard(request_id)
                    self.start(message, worker)
                else:
                    self.adopt(message, worker)
            case StopRequest(request_id) if request_id in self.runs:
                self.stop(request_id, message)
            case EmittedTokens(request_id) if request_id in self.asked:
                self.asked.discard(request_id)
                self.start(message, self.runs[request_id][1])

    def end(self, report: RequestEnded) -> None:
        """Report the end of a request as the answer to the latest submission."""
        self.answer(replace(report, submission=self.submissions.pop(report.request_id, 0)))

    def answer(self, *messages: Any) -> None:
        """Messages for the gateway; they are lost without a connection."""
        if self.connected:
            self.outbox += messages

    def start(self, message: Submit | EmittedTokens, worker: str) -> None:
        """Compute a request; what other workers have of it is cancelled."""
        assert isinstance(message.work, Work)
        request_id = message.request_id
        self.runs[request_id] = (message.work.request.digest, worker)
        for name in WORKERS:
            self.workers[name].orders.append((request_id, message if name == worker else None))
        self.answer(Placed(request_id, worker, worker))

    def adopt(self, message: Submit, worker: str) -> None:
        """Send the tokens that the gateway does not have again; the end, too."""
        kept = self.workers[worker].sequences.get(message.request_id)
        if kept is None or kept.asked.digest != message.digest:
            return
        self.workers[worker].replay(message.request_id, message.digest, message.num_emitted)
        if not kept.running:
            self.ended(worker, message.request_id)

    def stop(self, request_id: str, order: StopRequest | None = None) -> None:
        """Cancel a request at its workers and report its end."""
        del self.runs[request_id]
        self.asked.discard(request_id)
        for worker in self.workers.values():
            worker.orders.append((request_id, None))
        reason = order.reason if order is not None else None
        error = "" if reason is not None else "Cancelled"
        num_tokens = order.num_tokens if order is not None else 0
        self.end(RequestEnded(request_id, reason, error, num_tokens=num_tokens))

    def ended(self, worker: str, request_id: str) -> None:
        """A worker has sampled the last token."""
        if self.runs.get(request_id, ("", ""))[1] != worker or request_id in self.asked:
            return
        sequence = self.workers[worker].sequences.get(request_id)
        if sequence is None or sequence.running:  # It was replaced in the same step
            return
        last = sequence.output(sequence.num_tokens - 1)
        digest, _ = self.runs[request_id]
        if digest == sequence.asked.digest:
            del self.runs[request_id]
            self.end(
                RequestEnded(
                    request_id,
                    last.finish,
                    num_tokens=sequence.num_tokens,
                    prefill_worker=worker,
                    decode_worker=worker,
                    attempts=1,
                )
            )

    def migrate(self, worker: str) -> None:
        """A worker's sequences move to the other one, which continues them."""
        other = WORKERS[1 - WORKERS.index(worker)]
        for request_id, (digest, runner) in self.runs.items():
            sequence = self.workers[worker].sequences.get(request_id)
            idle = not self.workers[worker].orders and not self.workers[other].orders
            if runner == worker and idle and request_id not in self.asked and sequence and sequence.running:
                self.workers[other].sequences[request_id] = self.workers[worker].sequences.pop(request_id)
                self.runs[request_id] = (digest, other)
