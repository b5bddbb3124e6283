"""The way of tokens from a worker's sequences to their gateways, and what can be sent again. Pure.

    detached ──the gateway asks for it, or it comes while the gateway's link is open──► attached
        ▲                                                                                  │
        └───────────────── the link closes, or another gateway adopts it ──────────────────┘

A detached sequence keeps decoding: its tokens are in the sequence, and are sent from an index on when it is attached.
An ended one is kept for a while, because its last tokens may not have arrived.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from baton.engine.sequence import Sequence
from baton.engine.step import SampledToken
from baton.protocol.gateway_messages import StepOutput, StreamPosition, TokenMessage, TokenOutput
from baton.protocol.messages import RequestFailed, SequenceEnded
from baton.protocol.prompt_logprobs import PromptLogprobs
from baton.protocol.request import FinishReason
from baton.protocol.session_messages import DetachedSequence
from baton.worker.core.kept_logprobs import KeptLogprobs
from baton.worker.core.role import Command, Send, SendToGateway

KEEP_ENDED_S = 60.0
KEPT_ENDED = 1024
KEPT_BYTES = 32 << 20  # Of ended sequences, and as much again of log-probabilities
TOKEN_BYTES = 48  # Of a token id in the lists of its sequence
TOKENS_PER_MESSAGE = 8192  # In a replay


@dataclass(slots=True, eq=False)
class _Stream:
    sequence: Sequence
    gateway: str  # "": no gateway gets the tokens
    sink: list[TokenOutput] | None = None  # The gateway's tokens of this step, if the stream is attached
    starts_at: int | None = None  # It came while the link was closed: the index to send from when it opens
    finish: FinishReason | None = None
    ended_s: float = 0.0
    keeps_likely: bool = False  # Log-probabilities of the output were requested

    @property
    def num_bytes(self) -> int:
        return TOKEN_BYTES * len(self.sequence.tokens)

    @property
    def held(self) -> DetachedSequence:
        request = self.sequence.request
        return DetachedSequence(request.request_id, request.digest, self.sequence.num_output, request.max_total_tokens)


@dataclass(eq=False)
class TokenStreams:
    """Every sequence of a worker that is live or has ended recently, and its gateway.

    `keep_ended_s` bounds how long an ended sequence can be replayed; counts and bytes are bounded too, the oldest is
    dropped first. Only log-probabilities are kept beside the sequences' tokens, if requested.
    """

    keep_ended_s: float = KEEP_ENDED_S
    most_ended: int = KEPT_ENDED
    most_bytes: int = KEPT_BYTES
    _live: dict[str, _Stream] = field(default_factory=dict)
    _ended: OrderedDict[str, _Stream] = field(default_factory=OrderedDict)  # Oldest first
    _ended_bytes: int = 0
    _open: dict[str, list[TokenOutput]] = field(default_factory=dict)  # Gateways with an open link: this step's tokens
    _kept: KeptLogprobs = field(init=False)
    _prompts: list[Command] = field(default_factory=list)  # Log-probabilities of prompts, of this step

    def __post_init__(self) -> None:
        self._kept = KeptLogprobs(self.most_bytes)

    @property
    def num_bytes(self) -> int:
        """An estimate of the size of what is kept."""
        return self._ended_bytes + self._kept.num_bytes

    @property
    def num_live(self) -> int:
        """Sequences that have not ended."""
        return len(self._live)

    def held(self) -> tuple[DetachedSequence, ...]:
        """The sequences that a new router may adopt."""
        return tuple(stream.held for stream in self._all())

    # Sequences

    def start(self, sequence: Sequence, gateway: str) -> None:
        """A sequence begins here, or arrives from a peer; one of the same id is replaced."""
        self.forget(sequence.request_id)
        sink = self._open.get(gateway)
        starts_at = sequence.num_output if sink is None else None
        likely = sequence.sampling.logprobs is not None
        self._live[sequence.request_id] = _Stream(sequence, gateway, sink, starts_at, keeps_likely=likely)

    def on_token(self, sequence: Sequence, token: SampledToken, finish: FinishReason | None) -> None:
        """The newest token of a live sequence; `take` returns those of a step."""
        request = sequence.request
        stream = self._live[request.request_id]
        sink, keeps = stream.sink, stream.keeps_likely
        if sink is None and not keeps:
            return
        index = len(sequence.tokens) - len(request.prompt) - 1
        cached = 0 if index else sequence.cached
        output = TokenOutput(
            request.request_id, index, token.token_id, token.logprob, token.top_logprobs, finish, cached
        )
        if sink is not None:
            sink.append(output)
        if keeps:
            self._kept.add_token(output)

    def on_prompt_logprobs(self, logprobs: PromptLogprobs) -> None:
        """Log-probabilities of a live sequence's prompt, before its first token."""
        stream = self._live[logprobs.request_id]
        for part in logprobs.messages():
            self._kept.add_prompt(part)
            if stream.sink is not None:
                self._prompts.append(SendToGateway(stream.gateway, part))

    def take(self) -> list[Command]:
        """What came since the last call: log-probabilities of prompts, then the tokens, one message per gateway."""
        commands, self._prompts = self._prompts, []
        for gateway, tokens in self._open.items():
            if tokens:
                commands.append(SendToGateway(gateway, StepOutput(tuple(tokens))))
                tokens.clear()
        return commands

    def end(self, request_id: str, finish: FinishReason, now: float) -> SequenceEnded:
        """The sequence is complete and has no pages; returns the message about it."""
        ended = self._ended[request_id] = self._live.pop(request_id)
        ended.finish, ended.ended_s, ended.sink = finish, now, None
        self._ended_bytes += ended.num_bytes
        while len(self._ended) > self.most_ended or self._ended_bytes > self.most_bytes:
            self.forget(next(iter(self._ended)))
        return SequenceEnded(request_id, finish, ended.sequence.num_output)

    def forget(self, request_id: str) -> None:
        """The sequence will not be replayed, or another one has its id."""
        self._live.pop(request_id, None)
        self._kept.forget(request_id)
        ended = self._ended.pop(request_id, None)
        if ended is not None:
            self._ended_bytes -= ended.num_bytes

    def forget_all(self) -> None:
        """No sequence is continued; links stay."""
        for stream in list(self._all()):
            self.forget(stream.sequence.request_id)

    def expire(self, now: float) -> None:
        """Forget what ended too long ago."""
        while self._ended:
            request_id, oldest = next(iter(self._ended.items()))
            if now - oldest.ended_s < self.keep_ended_s:
                return
            self.forget(request_id)

    # Gateways

    def adopt(self, request_id: str, gateway: str, from_index: int) -> list[Command] | None:
        """Send a sequence's tokens to this gateway from now on; None if the sequence is not held.

        They are replayed from `from_index` when the gateway's link is open, unless the gateway gets them already.
        """
        stream = self._find(request_id)
        if stream is None:
            return None
        ended: list[Command] = []
        if stream.finish is not None:
            ended = [Send(SequenceEnded(request_id, stream.finish, stream.sequence.num_output))]
        if stream.gateway == gateway and stream.sink is not None:
            return ended
        stream.gateway, stream.sink = gateway, None
        if gateway in self._open:
            return self._replay(gateway, {request_id: from_index}) + ended
        stream.starts_at = from_index
        return ended

    def close(self, gateway: str) -> None:
        """The gateway's link is closed, or opens only after its next `AttachStreams`: detach its sequences."""
        self._open.pop(gateway, None)
        for stream in self._all():
            if stream.gateway == gateway:
                stream.sink = stream.starts_at = None

    def attach(self, gateway: str, positions: Iterable[StreamPosition]) -> list[Command]:
        """The gateway's link is open: send these streams from these indexes on, and those that came since `close`.

        Its other sequences stay detached.
        """
        self._open.setdefault(gateway, [])
        asked = {position.request_id: position.next_index for position in positions if self._runs(position)}
        for stream in self._all():
            if stream.gateway == gateway and stream.starts_at is not None:
                asked.setdefault(stream.sequence.request_id, stream.starts_at)
        return self._replay(gateway, asked)

    def _runs(self, position: StreamPosition) -> bool:
        """Whether the sequence of this id is the gateway's: an ended one may be of an earlier request."""
        stream = self._find(position.request_id)
        return stream is not None and position.digest in (b"", stream.sequence.request.digest)

    def _replay(self, gateway: str, asked: dict[str, int]) -> list[Command]:
        """Attach streams, each from its index on, to a gateway whose link is open."""
        prompts: list[PromptLogprobs] = []
        outputs: list[TokenOutput] = []
        failed: list[Command] = []
        for request_id, from_index in asked.items():
            stream = self._find(request_id)
            if stream is None or stream.gateway != gateway:
                continue
            stream.starts_at = None
            if stream.finish is None:
                stream.sink = self._open[gateway]
            prompt, tokens = self._prompt(stream, from_index), self._tokens(stream, from_index)
            if prompt is None or tokens is None:
                failed.append(
                    Send(RequestFailed(request_id, "NotFound", "Its log-probabilities are not held any more."))
                )
            else:
                prompts += prompt
                outputs += tokens
        parts = (outputs[at : at + TOKENS_PER_MESSAGE] for at in range(0, len(outputs), TOKENS_PER_MESSAGE))
        messages: list[TokenMessage] = [*prompts, *(StepOutput(tuple(part)) for part in parts)]
        return [*(SendToGateway(gateway, message) for message in messages), *failed]

    def _prompt(self, stream: _Stream, from_index: int) -> list[PromptLogprobs] | None:
        """The log-probabilities of the prompt, if they come before this index; None if some are not held."""
        sequence = stream.sequence
        if from_index or sequence.sampling.prompt_logprobs is None:
            return []
        parts = self._kept.prompt(sequence.request_id)
        last = sequence.prompt_len - 1
        due = last if sequence.num_output else min(sequence.computed, last)
        return parts if sum(map(len, parts)) >= due else None

    def _tokens(self, stream: _Stream, from_index: int) -> list[TokenOutput] | None:
        """The output from an index on; None if some of its log-probabilities are not held."""
        sequence = stream.sequence
        request_id, num_output = sequence.request_id, sequence.num_output
        if not stream.keeps_likely:
            tokens = enumerate(sequence.tokens[sequence.prompt_len + from_index :], from_index)
            outputs = [TokenOutput(request_id, index, token) for index, token in tokens]
        else:
            outputs = [output for output in self._kept.tokens(request_id) if output.index >= from_index]
            if len(outputs) < num_output - from_index:
                return None
        if outputs and stream.finish is not None:
            outputs[-1].finish = stream.finish
        if outputs and from_index == 0:
            outputs[0].cached_tokens = sequence.cached
        return outputs

    def _all(self) -> Iterator[_Stream]:
        yield from self._ended.values()
        yield from self._live.values()

    def _find(self, request_id: str) -> _Stream | None:
        return self._live.get(request_id) or self._ended.get(request_id)
