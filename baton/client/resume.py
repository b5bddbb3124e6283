"""A stream's history: what has come, when a broken stream is taken up again, and with what request.

A stream that breaks off is asked for again by request id and token index: the router may have been restarted. First a
small call finds out whether the router answers at all, with a bound of its own; the stream that follows has none but
the caller's deadline, because a router that answers may need long for the next token.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import grpc

from baton.client.answer import Answer, Token, read_answer, read_tokens
from baton.client.errors import (
    BROKEN_OFF,
    DeadlineExceeded,
    InternalError,
    NoWorkers,
    cause,
    error_from_rpc,
    retry_after_s,
)
from baton.protocol.errors import ERRORS_BY_NAME, BatonError
from baton.protocol.v1 import inference_pb2

GIVE_UP_S = 60.0  # without a single token
RETRY_S = 0.2  # between two tries
ASK_S = 5.0  # for the router to say that it is there
_RETRIED = ("NoWorkers", "WorkerLost", "HandoffFailed")


@dataclass(eq=False)
class Resume:
    """One stream's history: enough to ask for the rest of it, and to say why there is no rest."""

    request: inference_pb2.GenerateRequest
    address: str
    timeout_s: float | None
    give_up_s: float = GIVE_UP_S
    tokens: list[Token] = field(default_factory=list)
    answer: Answer | None = None
    _started_s: float = field(default_factory=time.monotonic)
    _broken_s: float | None = None  # since when no token has come
    _tries: int = 0  # since then
    breaks: int = 0  # in all

    def absorb(self, response: inference_pb2.GenerateResponse) -> list[Token]:
        """What a message of the stream brought."""
        self._broken_s, self._tries = None, 0
        new = read_tokens(response)
        self.tokens += new
        if response.HasField("finish"):
            self.answer = read_answer(self.tokens, response.finish)
        return new

    @property
    def whole_answer(self) -> Answer:
        """The answer of a stream that has ended; raises `InternalError` when its last message is missing."""
        if self.answer is None:
            raise InternalError("The stream ended without its last message.")
        return self.answer

    def pause_s(self, error: grpc.RpcError, asking: bool) -> float:
        """How long to wait before asking again; raises what the caller gets when the error is the stream's end.

        `asking`: the call that failed asked only whether the router is there. Taken up again is what broke off
        underway; a first call that reaches no router fails at once.
        """
        status, details = error.code().name, error.details() or ""  # type: ignore[attr-defined]
        told = {key: str(value) for key, value in error.trailing_metadata() or ()}  # type: ignore[attr-defined]
        name, why = told.get("baton-error", ""), cause(details)
        late = status == "DEADLINE_EXCEEDED"
        if not name and late and not asking:
            raise self._late() from None
        # After a restart of the router all streams come back at once: there is room again as soon as some have.
        full = name == "Overloaded" and self.breaks > 0
        away = (status == "UNAVAILABLE" or (asking and late)) and (not name or name in _RETRIED)
        if not (away or full):
            raise error_from_rpc(error, self.address, self.timeout_s) from None
        if not self.breaks and (name or (not self.tokens and why != BROKEN_OFF)):
            raise error_from_rpc(error, self.address, self.timeout_s) from None
        now = time.monotonic()
        self._broken_s = now if self._broken_s is None else self._broken_s
        if self.remaining_s == 0.0:
            raise self._late() from None
        if now - self._broken_s >= self.give_up_s:
            raise self._given_up(ERRORS_BY_NAME[name](details) if name else None, why) from None
        self.breaks += 1
        self._tries += 1
        if full:
            return max(RETRY_S, min(retry_after_s(told) or 0.0, ASK_S))
        return RETRY_S if name or self._tries > 1 else 0.0

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"The deadline of {self.timeout_s:g} s has passed, {self._progress}.")

    def _given_up(self, refusal: BatonError | None, why: str) -> BatonError:
        tried = f"{self.give_up_s:g} s (tried {_counted(self._tries, 'time')})"
        if refusal is not None:
            return type(refusal)(f"{refusal.message.rstrip('.')}: so for {tried}, {self._progress}.")
        return NoWorkers(f"The router at {self.address} has not answered for {tried}, {self._progress}: {why}.")

    @property
    def _progress(self) -> str:
        return f"after {_counted(len(self.tokens), 'output token')}" if self.tokens else "before the first token"

    def rest(self) -> inference_pb2.GenerateRequest:
        """The request for what is missing."""
        request = inference_pb2.GenerateRequest()
        request.CopyFrom(self.request)
        request.resume_from = len(self.tokens)
        request.emitted.extend(token.id for token in self.tokens)
        return request

    @property
    def ask_s(self) -> float:
        """How long to wait for a sign of the router: no longer than the stream itself may still take."""
        broken_s = 0.0 if self._broken_s is None else time.monotonic() - self._broken_s
        left_s = self.remaining_s
        return max(0.01, min(ASK_S, self.give_up_s - broken_s, ASK_S if left_s is None else left_s))

    @property
    def remaining_s(self) -> float | None:
        """What is left of the caller's deadline."""
        if self.timeout_s is None:
            return None
        return max(0.0, self.timeout_s - (time.monotonic() - self._started_s))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
