"""One stream as steps: which calls a client makes, when it resumes a broken stream, and what it raises.

`Resume.steps` is the whole protocol and does no I/O. It yields one `Step` after another and receives each step's
outcome; `baton.client.stream` performs the steps, once for plain code and once for asyncio.

A stream that breaks off is resumed by request id and token index, because the gateway may have been restarted. First a
small call with a short timeout checks that a gateway answers. The stream that follows has the caller's deadline alone,
because a gateway that answers may need long for the next token.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field

import grpc

from baton.client.answer import Answer, PromptToken, Token, read_answer, read_prompt, read_tokens
from baton.client.errors import BROKEN_OFF, cause, error_from_rpc, retry_after_s, trailers
from baton.protocol.errors import (
    ERRORS_BY_NAME,
    BatonError,
    Cancelled,
    DeadlineExceeded,
    InternalError,
    NoWorkers,
)
from baton.protocol.v1 import inference_pb2

GIVE_UP_S = 60.0  # How long a broken stream is resumed without a new token
RETRY_S = 0.2  # Between two tries
PING_S = 5.0  # Timeout of the call that checks whether a gateway answers
_RETRIED = ("NoWorkers", "WorkerLost", "HandoffFailed")


@dataclass(frozen=True, slots=True)
class Open:
    """Start a call of `Generate`."""

    request: inference_pb2.GenerateRequest
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Read:
    """Read the call's next message; None after the last one."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Check that a gateway answers."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Fail:
    """Raise the error that ended the stream; every later step is this one."""

    error: BatonError


Step = Open | Read | Ping | Pause | Fail
Steps = Generator[Step, inference_pb2.GenerateResponse | None, None]


@dataclass(eq=False)
class Resume:
    """The history of one stream: what it takes to request the rest, or to explain why there is none."""

    request: inference_pb2.GenerateRequest
    address: str
    timeout_s: float | None
    give_up_s: float = GIVE_UP_S
    tokens: list[Token] = field(default_factory=list)
    prompt: list[PromptToken] = field(default_factory=list)
    answer: Answer | None = None
    cancelled: bool = False
    breaks: int = 0  # How often the stream was resumed
    _started_s: float = field(default_factory=time.monotonic)
    _broken_s: float | None = None  # When the stream broke off; None once a message has arrived
    _tries: int = 0  # Since it broke off

    def steps(self) -> Steps:
        """The steps of the stream, in order. A step that fails is answered by throwing its `grpc.RpcError`."""
        try:
            yield Open(self.request, self.timeout_s)
            while True:
                try:
                    response = yield Read()
                except grpc.RpcError as error:
                    yield from self._reopen(error)
                    continue
                if response is None:
                    return
                self._absorb(response)
        except BatonError as failure:
            yield Fail(failure)

    def _reopen(self, error: grpc.RpcError) -> Steps:
        """Wait until a gateway answers, then open a call for the rest."""
        pinging = False
        while True:
            yield Pause(self._pause_s(error, pinging))
            self._check_cancelled()
            try:
                yield Ping(self._ping_s)
            except grpc.RpcError as failed:
                error, pinging = failed, True
                continue
            self._check_cancelled()
            yield Open(self._rest(), self._remaining_s)
            return

    def _check_cancelled(self) -> None:
        if self.cancelled:
            raise Cancelled("The stream was cancelled.")

    def _absorb(self, response: inference_pb2.GenerateResponse) -> None:
        self._broken_s, self._tries = None, 0
        if response.prompt_tokens:
            del self.prompt[response.prompt_tokens[0].index :]  # A resumed stream may begin with the first one again
            self.prompt += read_prompt(response)
        self.tokens += read_tokens(response)
        if response.HasField("finish"):
            self.answer = read_answer(self.tokens, self.prompt, response.finish)

    @property
    def whole_answer(self) -> Answer:
        """The answer of a stream that has ended; raises `InternalError` when its last message is missing."""
        if self.answer is None:
            raise InternalError("The stream ended without its last message.")
        return self.answer

    def _pause_s(self, error: grpc.RpcError, pinging: bool) -> float:
        """Seconds to wait before the next try; raises the stream's error when there is no next try.

        `pinging`: the call that failed was a `Ping`. A stream that broke off is resumed; a first call that reaches no
        gateway fails at once.
        """
        status, details = error.code().name, error.details() or ""  # type: ignore[attr-defined]
        sent = trailers(error)
        name, why = sent.get("baton-error", ""), cause(details)
        late = status == "DEADLINE_EXCEEDED"
        if not name and late and not pinging:
            raise self._late() from None
        # After a restart of the gateway all streams resume at once, so an overload passes quickly.
        full = name == "Overloaded" and self.breaks > 0
        away = (status == "UNAVAILABLE" or (pinging and late)) and (not name or name in _RETRIED)
        if not (away or full):
            raise error_from_rpc(error, self.address, self.timeout_s) from None
        if not self.breaks and (name or (not self.tokens and why != BROKEN_OFF)):
            raise error_from_rpc(error, self.address, self.timeout_s) from None
        now = time.monotonic()
        self._broken_s = now if self._broken_s is None else self._broken_s
        if self._remaining_s == 0.0:
            raise self._late() from None
        if now - self._broken_s >= self.give_up_s:
            raise self._given_up(ERRORS_BY_NAME[name](details) if name else None, why) from None
        self.breaks += 1
        self._tries += 1
        if full:
            return max(RETRY_S, min(retry_after_s(sent) or 0.0, PING_S))
        return RETRY_S if name or self._tries > 1 else 0.0

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"The deadline of {self.timeout_s:g} s has passed, {self._progress}.")

    def _given_up(self, refusal: BatonError | None, why: str) -> BatonError:
        tried = f"{self.give_up_s:g} s (tried {_counted(self._tries, 'time')})"
        if refusal is not None:
            return type(refusal)(f"{refusal.message.rstrip('.')}. Given up after {tried}, {self._progress}.")
        return NoWorkers(f"The gateway at {self.address} has not answered for {tried}, {self._progress}: {why}.")

    @property
    def _progress(self) -> str:
        return f"after {_counted(len(self.tokens), 'output token')}" if self.tokens else "before the first token"

    def _rest(self) -> inference_pb2.GenerateRequest:
        """The request for the missing tokens."""
        request = inference_pb2.GenerateRequest()
        request.CopyFrom(self.request)
        request.resume_from = len(self.tokens)
        request.emitted.extend(token.id for token in self.tokens)
        return request

    @property
    def _ping_s(self) -> float:
        """Timeout of a ping in seconds: no longer than the stream itself has left."""
        broken_s = 0.0 if self._broken_s is None else time.monotonic() - self._broken_s
        left_s = self._remaining_s
        return max(0.01, min(PING_S, self.give_up_s - broken_s, PING_S if left_s is None else left_s))

    @property
    def _remaining_s(self) -> float | None:
        """Seconds left until the caller's deadline."""
        if self.timeout_s is None:
            return None
        return max(0.0, self.timeout_s - (time.monotonic() - self._started_s))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
