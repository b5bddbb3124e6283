"""A gateway's decisions: its clients' streams, what it asks of the router and the workers, what it shows.

Pure: every method takes an event and the time, and returns commands for the shell to perform in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from baton.gateway.core.commands import (
    AcceptWorker,
    Command,
    EndStream,
    ForgetWorker,
    SendToRouter,
    SendToWorker,
    ShowTokens,
)
from baton.gateway.core.detokenizer import Vocabulary
from baton.gateway.core.live_stream import LiveStream, ModelFacts, error_of, open_stream
from baton.gateway.core.stopped import StoppedRequests
from baton.gateway.core.stream import TextToken
from baton.gateway.core.workers import Workers
from baton.metrics.metric import TOKEN_S
from baton.metrics.values import Distribution
from baton.protocol.bounds import MAX_IDS
from baton.protocol.errors import BatonError, Cancelled, Overloaded
from baton.protocol.gateway_messages import (
    AskEmitted,
    AttachStreams,
    GatewayInfo,
    GatewayLoad,
    GatewayRegistered,
    LinkUp,
    Placed,
    RegisterGateway,
    RequestEnded,
    ServingPools,
    StepOutput,
    StopRequest,
    StreamPosition,
    ToGateway,
    TokenMessage,
    WorkerJoined,
    WorkerLeft,
)
from baton.protocol.request import Request
from baton.protocol.session_messages import Reregister

END_WAIT_S = 1.0  # That a complete stream waits for its route, and one that the router has ended for missing tokens
MAX_STREAMS = MAX_IDS  # A message lists all of them
ANSWER_WITHIN_S = 3.0  # A registration without an answer is repeated
REGISTER_AGAIN_S = 1.0  # Requests to register are ignored for this long after a registration


@dataclass(eq=False)
class GatewaySession:
    """Events in, commands out. A stream is gone after its `EndStream`, and after `leave`."""

    info: GatewayInfo
    model: ModelFacts
    vocabulary: Vocabulary | None  # None where no text is needed
    router_grace_s: float  # That a stream without any token waits for the router
    epoch_s: float = 0.0  # The wall clock's time when the session's clock was 0
    streams: dict[str, LiveStream] = field(default_factory=dict)
    stopped: StoppedRequests = field(default_factory=StoppedRequests)
    workers: Workers = field(init=False)
    router_up: bool = False
    num_tokens: int = 0  # Shown since the start
    num_requests: int = 0
    token_gaps: Distribution = field(default_factory=lambda: Distribution(TOKEN_S))  # Between outputs of each stream
    _router_lost_s: float = float("-inf")
    _registered: bool = False  # The router has answered the last registration
    _registered_s: float = float("-inf")  # The time of that registration
    _waits: dict[str, float] = field(default_factory=dict)  # Until when a stream waits (`END_WAIT_S`), by request id

    def __post_init__(self) -> None:
        self.workers = Workers(self.model.vocab_size)

    def open(self, request: Request, now: float, emitted: Sequence[int] = (), resume_from: int = 0) -> list[Command]:
        """Open a stream, or give the live one of the same request to this reader, from index `resume_from` on.

        `emitted` are output tokens that the client has. An earlier reader has to be ended with `taken_over`. Raises
        `InvalidRequest` for another live request's id, `Overloaded` at the limit; nothing changes then.
        """
        if (live := self.streams.get(request.request_id)) is not None:
            # Its client may have been at another gateway in between: the router needs to learn its latest gateway.
            again = live.submitted and live.router_end is None and not live.output.ended
            return [*live.replay(request, resume_from), *(self._submit(live, now) if again else [])]
        if len(self.streams) >= MAX_STREAMS:
            raise Overloaded(f"The gateway has {MAX_STREAMS} streams, its maximum: retry later.", retry_after_s=1.0)
        stream = open_stream(request, emitted, resume_from, self.model, self.vocabulary, now)
        self.streams[request.request_id] = stream
        self.num_requests += 1
        if stream.output.ended:  # The client had passed a stop string
            return [self._end(stream, None, now)]
        stream.held = self.stopped.holds(request.request_id, stream.digest)
        return self._submit(stream, now)

    def leave(self, request_id: str, error: BatonError, now: float) -> list[Command]:
        """The client of a stream is gone, for this reason. A stream that has ended is ignored."""
        stream = self.streams.get(request_id)
        if stream is None:
            return []
        self._forget(stream, True, now)
        return self._stop(stream, error)

    def load(self, cpu_s: float, waiting_bytes: int = 0) -> GatewayLoad:
        """The heartbeat, with the process's CPU time and the bytes of text that wait for tokenisation."""
        return GatewayLoad(len(self.streams), self.num_tokens, self.num_requests, cpu_s, waiting_bytes)

    def on_router_link(self, up: bool, now: float) -> list[Command]:
        """The router's connection came up, or broke; its messages were handled before. Streams go on without it."""
        if up:
            return self._register(now)
        if self.router_up:
            self._router_lost_s = now
        self.router_up = self._registered = False
        return self._end_complete(now)

    def on_router_message(self, message: ToGateway, now: float) -> list[Command]:
        """A message of the router. Before it has answered a registration, what it sends of requests is outdated."""
        match message:
            case GatewayRegistered():
                self._registered = self.router_up
                self.stopped.extend(now)
                self.workers.on_registered(now)
            case WorkerJoined(worker, public_key):
                accept, waits = AcceptWorker(worker, public_key), self.workers.join(worker)
                return [accept, self._attach(worker, self.streams.values())] if waits else [accept]
            case WorkerLeft(worker):
                self.workers.leave(worker)
                return [ForgetWorker(worker)]
            case ServingPools():
                self.workers.pools = message
            case Reregister():
                return self._register(now) if self.router_up and now - self._registered_s >= REGISTER_AGAIN_S else []
        if not self._registered:
            return []
        match message:
            case RequestEnded():
                return self._on_request_ended(message, now)
            case Placed(request_id):
                stream = self.streams.get(request_id)
                if stream is not None and not stream.held:
                    stream.on_placed(message, now)
            case AskEmitted(request_id):
                return self._on_ask(request_id)
        return []

    def on_worker_messages(
        self, worker: str, incarnation: str, batch: Iterable[TokenMessage], now: float
    ) -> list[Command]:
        """Messages of a worker. Tokens may come from any worker that the router has named, in any order."""
        del incarnation  # A new one connects with `LinkUp`, as an old one does
        if worker not in self.workers:
            self.workers.refuse(worker, batch)
            return []
        commands: list[Command] = []
        shown: dict[str, list[TextToken]] = {}
        for message in batch:
            if isinstance(message, StepOutput):
                self.workers.take(worker, message.tokens, self.streams, shown, now)
            elif isinstance(message, LinkUp):
                commands.append(self._attach(worker, self.streams.values()))
            else:
                commands += self.workers.take_prompt(message, self.streams, shown)
        for request_id, tokens in shown.items():
            stream = self.streams[request_id]
            stream.on_tokens(len(tokens), now, self.token_gaps)
            if tokens[0].index < stream.first_index:
                tokens = [token for token in tokens if token.index >= stream.first_index]
            if tokens:
                self.num_tokens += len(tokens)
                commands.append(ShowTokens(request_id, tokens))
            if stream.output.ended or stream.router_end is not None:
                commands += self._on_progress(stream, now)
        return commands

    def tick(self, now: float) -> list[Command]:
        """Handle what has waited too long. Call it ten times a second."""
        commands: list[Command] = [] if self.router_up else self._give_up(now)
        if self.router_up and not self._registered and now - self._registered_s >= ANSWER_WITHIN_S:
            commands += self._register(now)
        commands += [ForgetWorker(worker) for worker in self.workers.stale(now)]
        for worker, request_ids in self.workers.due(now).items():
            commands.append(self._attach(worker, [self.streams[request_id] for request_id in request_ids]))
        for request_id in [request_id for request_id, until_s in self._waits.items() if now >= until_s]:
            stream = self.streams[request_id]
            del self._waits[request_id]
            if stream.output.ended:
                commands += [*self._stop(stream), self._end(stream, None, now)]
            else:
                commands += self._submit(stream, now)
        for request_id in self.stopped.expire(now) if self._registered else ():
            commands += self._release(request_id, now)
        return commands

    def _on_progress(self, stream: LiveStream, now: float) -> list[Command]:
        """The output has ended, or the router has and tokens were missing."""
        output, report = stream.output, stream.router_end
        if not output.ended:
            assert report is not None and report.reason is not None
            if stream.num_tokens < report.num_tokens:
                return []
            output.close(report.reason)
        if report is not None or not self.router_up:
            return [self._end(stream, None, now)]
        self.workers.close_gap(stream.request_id)
        self._waits[stream.request_id] = now + END_WAIT_S
        return self._stop(stream) if output.stop_string_met else []

    def _on_request_ended(self, report: RequestEnded, now: float) -> list[Command]:
        request_id = report.request_id
        if self.stopped.answer(request_id, report.submission):
            return self._release(request_id, now)
        stream = self.streams.get(request_id)
        if stream is None or report.submission != stream.submission or stream.router_end is not None:
            return []
        stream.router_end = report
        if stream.output.ended:
            return [self._end(stream, None, now)]
        if report.reason is None:
            return [self._end(stream, error_of(report), now)]
        if report.num_tokens <= stream.num_tokens:
            stream.output.close(report.reason)
            return [self._end(stream, None, now)]
        self._waits[request_id] = now + END_WAIT_S
        return [self._attach(report.decode_worker, [stream])] if report.decode_worker in self.workers else []

    def _on_ask(self, request_id: str) -> list[Command]:
        stream = self.streams.get(request_id)
        if stream is None or stream.held:
            return [SendToRouter(StopRequest(request_id, 0, None, Cancelled.__name__, "The stream has ended."))]
        if stream.output.ended:
            return self._stop(stream)
        self.workers.close_gap(request_id)
        return [SendToRouter(stream.emitted())]

    def _register(self, now: float) -> list[Command]:
        """Register with every stream that the router may run, and submit those and new ones."""
        commands = self._end_complete(now)
        self.router_up, self._registered, self._registered_s = True, False, now
        listed: list[str] = []
        for stream in self.streams.values():
            if stream.held and self.stopped.claim(stream.request_id, stream.digest):
                stream.held, stream.resumed = False, True
            if stream.submitted or (stream.resumed and not stream.held):
                listed.append(stream.request_id)
        self._waits.clear()
        commands.append(SendToRouter(RegisterGateway(self.info, tuple(listed))))
        for stream in self.streams.values():
            commands += self._submit(stream, now)
        return commands

    def _submit(self, stream: LiveStream, now: float) -> list[Command]:
        return [SendToRouter(stream.submit(now, self.epoch_s))] if self.router_up and not stream.held else []

    def _release(self, request_id: str, now: float) -> list[Command]:
        """An earlier request of this id has ended: submit the one that was held back for it."""
        stream = self.streams.get(request_id)
        if stream is None or not stream.held or self.stopped.holds(request_id, stream.digest):
            return []
        stream.held = False
        return self._submit(stream, now)

    def _stop(self, stream: LiveStream, error: BatonError | None = None) -> list[Command]:
        """Order the router to compute no more of a stream, if it does. A registration makes up for a lost order."""
        wanted = self.router_up and stream.submitted and stream.router_end is None
        return [SendToRouter(stream.stop(error))] if wanted else []

    def _attach(self, worker: str, streams: Iterable[LiveStream]) -> SendToWorker:
        wanted = (stream for stream in streams if not stream.output.ended and not stream.held)
        positions = tuple(StreamPosition(stream.request_id, stream.num_tokens, stream.digest) for stream in wanted)
        return SendToWorker(worker, AttachStreams(positions))

    def _give_up(self, now: float) -> list[Command]:
        """Without a router: end the streams that may not wait for it any longer."""
        lost_s, grace_s = self._router_lost_s, self.router_grace_s
        errors = [(stream, stream.without_router(lost_s, grace_s, now)) for stream in self.streams.values()]
        return [self._end(stream, error, now) for stream, error in errors if error is not None]

    def _end_complete(self, now: float) -> list[Command]:
        """End streams that have their last token and wait for their route, which will not come."""
        waiting = [self.streams[request_id] for request_id in self._waits]
        return [self._end(stream, None, now) for stream in waiting if stream.output.ended]

    def _end(self, stream: LiveStream, error: BatonError | None, now: float) -> EndStream:
        self._forget(stream, error is not None or stream.output.stop_string_met, now)
        return EndStream(stream.end(error))

    def _forget(self, stream: LiveStream, cut_off: bool, now: float) -> None:
        """Drop a stream; `cut_off`: a worker may send more of its tokens."""
        del self.streams[stream.request_id]
        self._waits.pop(stream.request_id, None)
        self.workers.close_gap(stream.request_id)
        answered = stream.router_end is not None
        if stream.submitted and (cut_off or not answered):
            self.stopped.add(stream, answered, now)
