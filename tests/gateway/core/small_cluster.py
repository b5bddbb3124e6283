"""A gateway's surroundings, small: a router, two workers and clients that check every token and every end.

A token is a function of its request and its index. Messages wait on their links until a test delivers or loses them;
the router and the workers follow `proto/baton/v1/worker.proto` and no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from baton.gateway.core.commands import (
    AcceptWorker,
    Command,
    EndStream,
    ForgetWorker,
    SendToRouter,
    SendToWorker,
    ShowTokens,
    StreamEnd,
)
from baton.gateway.core.live_stream import ModelFacts, taken_over
from baton.gateway.core.session import GatewaySession
from baton.protocol.errors import Cancelled, NoRouter
from baton.protocol.gateway_messages import (
    AskEmitted,
    EmittedTokens,
    GatewayInfo,
    GatewayRegistered,
    LinkUp,
    Placed,
    RegisterGateway,
    RequestEnded,
    StepOutput,
    StopRequest,
    Submit,
    TokenOutput,
    WorkerJoined,
    WorkerLeft,
)
from baton.protocol.messages import Work
from baton.protocol.request import FinishReason, Request, SamplingParams
from tests.plain_vocabulary import BYTES

WORKERS = ("w0", "w1")
GRACE_S = 10.0
INFO = GatewayInfo("g", "1", "tcp://g")
MODEL = ModelFacts("m", 4, 256)


def request(request_id: str, kind: int, most: int = 8, stop: tuple[str, ...] = (), least: int = 0) -> Request:
    """A request whose tokens are those of its `kind`, which is its prompt."""
    return Request(request_id, (kind, 1), SamplingParams(max_tokens=most, stop=stop, min_tokens=least))


def tokens_of(asked: Request) -> list[int]:
    """All tokens that workers compute for a request: one letter each."""
    kind, most = asked.prompt[0], asked.sampling.max_tokens
    count = most - kind % 3 if most > 3 else most
    return [b"ab."[blake2b(bytes([kind, index]), digest_size=1).digest()[0] % 3] for index in range(count)]


def answer_of(asked: Request) -> tuple[int, str, FinishReason]:
    """Number of tokens, text and end of a request's answer."""
    tokens = tokens_of(asked)
    for count in range(asked.sampling.min_tokens + 1, len(tokens) + 1):
        text = bytes(tokens[:count]).decode()
        met = [len(stop) for stop in asked.sampling.stop if text.endswith(stop)]
        if met:
            return count, text[: count - max(met)], FinishReason.STOP
    reason = FinishReason.LENGTH if len(tokens) == asked.sampling.max_tokens else FinishReason.STOP
    return len(tokens), bytes(tokens).decode(), reason


@dataclass(eq=False)
class Reader:
    """A client: it has `next_index` tokens of its answer."""

    asked: Request
    first_index: int
    next_index: int
    text: str = ""
    end: StreamEnd | None = None

    def show(self, command: ShowTokens) -> None:
        assert self.end is None and command.tokens
        expected = tokens_of(self.asked)
        for token in command.tokens:
            assert token.index == self.next_index and token.token_id == expected[token.index]
            self.next_index += 1
            self.text += token.text

    def finish(self, end: StreamEnd) -> None:
        assert self.end is None
        self.end = end
        if end.error is not None:  # Nothing else may reach a client here, and only one whose answer has not begun
            assert isinstance(end.error, NoRouter) and self.next_index == self.first_index
        else:
            count, text, reason = answer_of(self.asked)
            assert (end.output_tokens, end.reason, self.next_index) == (count, reason, count), (
                self,
                count,
                text,
                reason,
            )
            assert text.endswith(self.text + end.trailing_text)


@dataclass(eq=False)
class Sequence:
    """A request on a worker, of which `num_tokens` were sampled."""

    asked: Request
    num_tokens: int
    running: bool = True

    def output(self, index: int) -> TokenOutput:
        tokens = tokens_of(self.asked)
        reason = FinishReason.LENGTH if len(tokens) == self.asked.sampling.max_tokens else FinishReason.STOP
        finish = reason if index + 1 == len(tokens) else None
        return TokenOutput(self.asked.request_id, index, tokens[index], finish=finish)


@dataclass(eq=False)
class Worker:
    """A worker with its link to the gateway; `orders` of the router wait until a step has ended."""

    up: bool = False
    attached: bool = False
    sequences: dict[str, Sequence] = field(default_factory=dict)
    orders: deque[tuple[str, Submit | EmittedTokens | None]] = field(default_factory=deque)
    frames: deque[LinkUp | StepOutput] = field(default_factory=deque)

    def step(self) -> list[str]:
        """Sample one token of each sequence, then follow the orders; the ids of sequences that ended."""
        ended, outputs = [], []
        for request_id, sequence in self.sequences.items():
            if sequence.running:
                outputs.append(sequence.output(sequence.num_tokens))
                sequence.num_tokens += 1
                if outputs[-1].finish is not None:
                    sequence.running = False
                    ended.append(request_id)
        if outputs and self.attached:
            self.frames.append(StepOutput(tuple(outputs)))
        while self.orders:
            request_id, work = self.orders.popleft()
            self.sequences.pop(request_id, None)
            if work is not None:
                assert isinstance(work.work, Work) and len(work.work.emitted) == work.num_emitted
                assert list(work.work.emitted) == tokens_of(work.work.request)[: work.num_emitted]
                self.sequences[request_id] = Sequence(work.work.request, work.num_emitted)
        return ended

    def replay(self, request_id: str, digest: bytes, next_index: int) -> None:
        """Send tokens again; the worker ignores requests that it does not run."""
        sequence = self.sequences.get(request_id)
        if (
            self.attached
            and sequence is not None
            and sequence.asked.digest == digest
            and next_index < sequence.num_tokens
        ):
            tokens = range(next_index, sequence.num_tokens)
            self.frames.append(StepOutput(tuple(sequence.output(index) for index in tokens)))


@dataclass(eq=False)
class SmallCluster:
    """Drives one session. `readers` are the open streams, `gone` those that have ended."""

    now: float = 100.0
    router_up: bool = False  # The connection, as the gateway sees it
    registered: bool = False  # At this router
    runs: dict[str, tuple[bytes, str]] = field(default_factory=dict)  # The router's: digest and worker, by request id
    asked: set[str] = field(default_factory=set)  # Runs that wait for `EmittedTokens`
    kept: dict[str, tuple[str, Request]] = field(default_factory=dict)  # Sequences of an earlier router, by request id
    workers: dict[str, Worker] = field(default_factory=lambda: {name: Worker() for name in WORKERS})
    to_router: deque[Any] = field(default_factory=deque)
    from_router: deque[Any] = field(default_factory=deque)
    readers: dict[str, Reader] = field(default_factory=dict)
    gone: list[Reader] = field(default_factory=list)
    session: GatewaySession = field(init=False)

    def __post_init__(self) -> None:
        self.session = GatewaySession(INFO, MODEL, BYTES, GRACE_S)

    # Clients

    def open(self, asked: Request, resume_from: int = 0, with_ids: bool = False) -> None:
        """A client sends a request, or resumes; an earlier reader of its stream is ended. Raises what `open` does."""
        emitted = tokens_of(asked)[:resume_from] if with_ids else []
        commands = self.session.open(asked, self.now, emitted, resume_from)
        earlier = self.readers.get(asked.request_id)
        if earlier is not None:
            assert isinstance(taken_over(asked.request_id), Cancelled)
            self.gone.append(earlier)
        reader = self.readers[asked.request_id] = Reader(asked, resume_from, resume_from)
        self.perform(commands)
        reader.first_index = reader.next_index

    def leave(self, request_id: str) -> None:
        """A client disconnects."""
        self.gone.append(self.readers.pop(request_id))
        self.perform(self.session.leave(request_id, Cancelled("The client disconnected."), self.now))

    def perform(self, commands: Iterable[Command]) -> None:
        """As a shell does."""
        for command in commands:
            match command:
                case SendToRouter(message):
                    assert self.router_up
                    self.to_router.append(message)
                case SendToWorker(worker, message):
                    link = self.workers[worker]
                    link.attached = link.up
                    for position in message.streams if link.up else ():
                        link.replay(position.request_id, position.digest, position.next_index)
                case ShowTokens(request_id):
                    self.readers[request_id].show(command)
                case EndStream(end):
                    reader = self.readers.pop(end.request_id)
                    reader.finish(end)
                    self.gone.append(reader)
                case AcceptWorker(worker):
                    self.connect(worker)
                case ForgetWorker(worker):
                    self.disconnect(worker, 0)

    # Links

    def connect(self, worker: str) -> None:
        """A worker's link comes up."""
        link = self.workers[worker]
        if not link.up:
            link.up = True
            link.frames.append(LinkUp(worker, "1"))

    def disconnect(self, worker: str, keep: int) -> None:
        """A worker's link breaks: `keep` of its frames arrive, the others are lost."""
        link = self.workers[worker]
        link.up = link.attached = False
        while len(link.frames) > keep:
            link.frames.pop()

    def link_router(self, up: bool, keep: int = 0) -> None:
        """The link to the router comes up or breaks: `keep` messages in each direction arrive, the others are lost."""
        if not up and self.router_up:
            while len(self.to_router) > keep:
                self.to_router.pop()
            while len(self.from_router) > keep:
                self.from_router.pop()
            self.registered = False
        if up != self.router_up:
            self.router_up = up
            self.perform(self.session.on_router_link(up, self.now))

    def kill_router(self) -> None:
        """The router is lost with all it knows; workers keep their sequences."""
        self.link_router(False)
        self.runs, self.asked = {}, set()
        for name, worker in self.workers.items():
            worker.orders.clear()
            self.kept |= {request_id: (name, one.asked) for request_id, one in worker.sequences.items()}

    def hear_worker(self, worker: str, place: int = 0) -> None:
        """A frame of a worker arrives; with a `place` it overtakes others, but no `LinkUp` does or is overtaken."""
        frames = self.workers[worker].frames
        if not frames:
            return
        plain = next((at for at, frame in enumerate(frames) if isinstance(frame, LinkUp)), len(frames))
        place = min(place, max(0, plain - 1))
        message = frames[place]
        del frames[place]
        self.perform(self.session.on_worker_messages(worker, "1", [message], self.now))

    def spoil(self, worker: str, place: int, repeat: bool) -> None:
        """One frame of tokens is lost although the link works, or is repeated."""
        frames = self.workers[worker].frames
        if place < len(frames) and isinstance(frames[place], StepOutput):
            if repeat:
                frames.append(frames[place])
            else:
                del frames[place]

    def hear_router(self) -> None:
        """A message of the router arrives."""
        if self.from_router:
            self.perform(self.session.on_router_message(self.from_router.popleft(), self.now))

    # The router

    def route(self) -> None:
        """The router handles one message."""
        if not self.to_router:
            return
        message = self.to_router.popleft()
        if isinstance(message, RegisterGateway):
            self.registered = True
            self.answer(GatewayRegistered("r", "1"), *(WorkerJoined(worker) for worker in WORKERS))
            for request_id in [one for one in self.runs if one not in message.request_ids]:
                self.stop(request_id)
        elif not self.registered:
            return
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
                    self.answer(RequestEnded(request_id, None, "InvalidRequest", "in use"))
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

    def answer(self, *messages: Any) -> None:
        if self.router_up:
            self.from_router += messages

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
        self.answer(RequestEnded(request_id, reason, error, num_tokens=num_tokens))

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
            self.answer(
                RequestEnded(
                    request_id,
                    last.finish,
                    num_tokens=sequence.num_tokens,
                    prefill_worker=worker,
                    decode_worker=worker,
                    attempts=1,
                )
            )

    def step(self, worker: str) -> None:
        """One step of a worker."""
        for request_id in self.workers[worker].step():
            self.ended(worker, request_id)

    def lose_worker(self, worker: str) -> None:
        """A worker dies and starts again, empty: its requests are computed again, after the gateway's answer."""
        self.disconnect(worker, 0)
        self.workers[worker] = Worker()
        self.answer(WorkerLeft(worker), WorkerJoined(worker))
        if not self.router_up:
            self.connect(worker)
        lost = [request_id for request_id, (_, name) in self.runs.items() if name == worker]
        for request_id in lost:
            self.runs[request_id] = (self.runs[request_id][0], WORKERS[1 - WORKERS.index(worker)])
            self.asked.add(request_id)
            self.answer(AskEmitted(request_id))

    def migrate(self, worker: str) -> None:
        """A worker's sequences move to the other one, which continues them."""
        other = WORKERS[1 - WORKERS.index(worker)]
        for request_id, (digest, runner) in self.runs.items():
            sequence = self.workers[worker].sequences.get(request_id)
            idle = not self.workers[worker].orders and not self.workers[other].orders
            if runner == worker and idle and request_id not in self.asked and sequence and sequence.running:
                self.workers[other].sequences[request_id] = self.workers[worker].sequences.pop(request_id)
                self.runs[request_id] = (digest, other)

    # Time

    def advance(self, seconds: float) -> None:
        """Time passes; nothing is on its way for longer than a step."""
        if seconds >= 1.0:
            self.settle()
        self.now += seconds
        self.perform(self.session.tick(self.now))

    def settle(self) -> None:
        """Deliver everything that is on its way."""
        while self.to_router or self.from_router or any(one.frames or one.orders for one in self.workers.values()):
            if self.router_up:
                self.route()
            else:
                self.to_router.clear()
            self.hear_router()
            for name in WORKERS:
                self.hear_worker(name)
                if self.workers[name].orders:
                    self.step(name)

    def come_to_rest(self) -> None:
        """Every link works again, and time passes until every stream has ended."""
        self.link_router(True)
        for name in WORKERS:
            self.connect(name)
        for _ in range(60):
            self.settle()
            for name in WORKERS:
                self.step(name)
            self.advance(0.3)
