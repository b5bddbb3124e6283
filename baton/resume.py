"""When a broken stream is taken up again, and with what request. The router may have been restarted meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from baton.answer import Token
from baton.v1 import inference_pb2

GIVE_UP_S = 60.0  # without a single token
RETRY_S = 0.2  # while the router is there and its workers are not back yet
_RETRIED = ("NoWorkers", "WorkerLost", "HandoffFailed")


@dataclass(eq=False)
class Resume:
    """One stream's history: enough to ask for the rest of it, by request id and index."""

    request: inference_pb2.GenerateRequest
    timeout_s: float | None
    _started_s: float = field(default_factory=time.monotonic)
    _broken_s: float | None = None  # since when no token has come
    _reached: bool = False  # a token has come
    breaks: int = 0

    def on_tokens(self) -> None:
        self._broken_s, self._reached = None, True

    def wait_s(self, error: grpc.RpcError) -> float | None:
        """How long to wait before asking again; None when the error is the stream's end.

        Taken up again is what broke off underway. A first call that reaches nobody fails at once.
        """
        if error.code() is not grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined]
            return None
        told = {key: str(value) for key, value in error.trailing_metadata() or ()}  # type: ignore[attr-defined]
        name = told.get("baton-error", "")
        nobody = not self._reached and "connect" in (error.details() or "").lower()  # type: ignore[attr-defined]
        if not self.breaks and (name or nobody):
            return None
        if name and name not in _RETRIED:
            return None
        now = time.monotonic()
        self._broken_s = now if self._broken_s is None else self._broken_s
        if now - self._broken_s > GIVE_UP_S or self.remaining_s == 0.0:
            return None
        self.breaks += 1
        return RETRY_S if name or self.breaks > 1 else 0.0

    def again(self, tokens: Sequence[Token]) -> inference_pb2.GenerateRequest:
        """The request for what is missing."""
        request = inference_pb2.GenerateRequest()
        request.CopyFrom(self.request)
        request.resume_from = len(tokens)
        request.emitted.extend(token.id for token in tokens)
        return request

    @property
    def remaining_s(self) -> float | None:
        """What is left of the caller's deadline."""
        if self.timeout_s is None:
            return None
        return max(0.0, self.timeout_s - (time.monotonic() - self._started_s))
