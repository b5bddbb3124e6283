"""Replay buffer: output of running and recently ended sequences, for a restarted router.

Until a router asks for a sequence it is *detached* (detached): it keeps decoding, and its tokens are buffered here.

    running ──new router──► detached ──AdoptSequence: replay from an index──► running
       └──── ended ────► kept ◄── ended ──┘     until it is replayed, cancelled, too old, or one of too many
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from baton.engine.sequence import Sequence
from baton.protocol.messages import DetachedSequence, TokenOutput
from baton.protocol.request import FinishReason

KEPT_ENDED = 1024
KEPT_BYTES = 32 << 20  # of ended sequences, and as much again of log-probabilities
TOKEN_BYTES = 48  # of a token id in the lists of its sequence
OUTPUT_BYTES, LIKELY_BYTES = 200, 120  # of a token with its log-probability, and of each likely one beside it


@dataclass(slots=True, eq=False)
class _Ended:
    sequence: Sequence
    finish: FinishReason
    ended_s: float

    @property
    def num_bytes(self) -> int:
        return TOKEN_BYTES * len(self.sequence.tokens)


@dataclass(eq=False)
class ReplayBuffer:
    """Token ids are in the sequences; only log-probabilities are kept beside them, if requested.

    `keep_ended_s` bounds how long an ended sequence can be replayed; counts and bytes are bounded too, the oldest
    is dropped first.
    """

    keep_ended_s: float
    most_ended: int = KEPT_ENDED
    most_bytes: int = KEPT_BYTES
    _ended: OrderedDict[str, _Ended] = field(default_factory=OrderedDict)  # oldest first
    _ended_bytes: int = 0
    _detached: set[str] = field(default_factory=set)
    _likely: OrderedDict[str, list[TokenOutput]] = field(default_factory=OrderedDict)
    _likely_bytes: int = 0

    def __len__(self) -> int:
        return len(self._ended)

    @property
    def num_bytes(self) -> int:
        """An estimate of the buffer's size."""
        return self._ended_bytes + self._likely_bytes

    def on_token(self, sequence: Sequence, output: TokenOutput) -> bool:
        """A sequence has one more token; returns whether to send it to the router now."""
        if sequence.sampling.logprobs is not None:
            self._likely.setdefault(output.request_id, []).append(output)
            self._likely_bytes += _num_bytes(output)
            while self._likely_bytes > self.most_bytes:
                self._forget_likely(next(iter(self._likely)))
        return output.request_id not in self._detached

    def on_ended(self, sequence: Sequence, finish: FinishReason, now: float) -> None:
        """The sequence is complete, and has no pages any more. Its last tokens may not have reached a client."""
        self._detached.discard(sequence.request_id)
        ended = self._ended[sequence.request_id] = _Ended(sequence, finish, now)
        self._ended_bytes += ended.num_bytes
        while len(self._ended) > self.most_ended or self._ended_bytes > self.most_bytes:
            self.forget(next(iter(self._ended)))

    def forget(self, request_id: str) -> None:
        """The sequence will not be replayed, or another one has its id."""
        self._detached.discard(request_id)
        self._forget_likely(request_id)
        ended = self._ended.pop(request_id, None)
        if ended is not None:
            self._ended_bytes -= ended.num_bytes

    def expire(self, now: float) -> None:
        """Forget what ended too long ago."""
        while self._ended:
            request_id, oldest = next(iter(self._ended.items()))
            if now - oldest.ended_s < self.keep_ended_s:
                return
            self.forget(request_id)

    def detach(self, running: Iterable[Sequence]) -> tuple[DetachedSequence, ...]:
        """The router is gone: detach all sequences until a new router asks, and return those it may adopt."""
        held = {ended.sequence.request_id: _held(ended.sequence) for ended in self._ended.values()}
        for sequence in running:
            self._detached.add(sequence.request_id)
            held[sequence.request_id] = _held(sequence)
        return tuple(held.values())

    def replay(self, request_id: str, running: Sequence | None, from_index: int) -> list[TokenOutput] | None:
        """The output from an index on; a running sequence is attached again. None if it cannot be replayed."""
        ended = self._ended.get(request_id)
        sequence = running or (ended.sequence if ended is not None else None)
        if sequence is None or not 0 <= from_index <= sequence.num_output:
            return None
        if sequence.sampling.logprobs is None:
            output = sequence.tokens[sequence.prompt_len + from_index :]
            told = [TokenOutput(request_id, index, token) for index, token in enumerate(output, from_index)]
        else:
            likely = self._likely.get(request_id, [])
            told = [output for output in likely if output.index >= from_index]
            if len(told) != sequence.num_output - from_index:
                return None
        self._detached.discard(request_id)
        if told and running is None and ended is not None:
            told[-1].finish = ended.finish
        return told

    def _forget_likely(self, request_id: str) -> None:
        for output in self._likely.pop(request_id, ()):
            self._likely_bytes -= _num_bytes(output)


def _num_bytes(output: TokenOutput) -> int:
    return OUTPUT_BYTES + LIKELY_BYTES * len(output.top_logprobs)


def _held(sequence: Sequence) -> DetachedSequence:
    request = sequence.request
    return DetachedSequence(request.request_id, request.digest, sequence.num_output, request.max_total_tokens)
