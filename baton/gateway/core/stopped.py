"""Requests that a gateway has given up, for as long as messages about them may still arrive. Pure.

Their ids may be used again at once. Until the router has answered the end of the earlier request, a new one of the same
id is held back. One with other content is held back until the earlier one's tokens can no longer be on their way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.gateway.core.live_stream import LiveStream

FENCE_S = 2.0  # A worker that is cancelled may send tokens until the end of its step


@dataclass(slots=True)
class _Stopped:
    digest: bytes
    submission: int  # the latest, which the router answers
    until_s: float
    answered: bool
    awaited: bool  # the router will report its end on this connection


@dataclass(slots=True, eq=False)
class StoppedRequests:
    """By request id; each leaves after `FENCE_S`, but not before the router's report that is awaited."""

    _requests: dict[str, _Stopped] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, stream: LiveStream, answered: bool, now: float) -> None:
        """A stream was given up; `answered`: the router has reported its end."""
        self._requests.pop(stream.request_id, None)
        self._requests[stream.request_id] = _Stopped(
            stream.digest, stream.submission, now + FENCE_S, answered, awaited=not answered
        )

    def answer(self, request_id: str, submission: int) -> bool:
        """Whether the router's report on an end is about an earlier request of this id."""
        stopped = self._requests.get(request_id)
        if stopped is None or stopped.answered or stopped.submission != submission:
            return False
        stopped.answered, stopped.awaited = True, False
        return True

    def holds(self, request_id: str, digest: bytes) -> bool:
        """Whether a new request has to wait."""
        stopped = self._requests.get(request_id)
        return stopped is not None and not (stopped.answered and stopped.digest == digest)

    def claim(self, request_id: str, digest: bytes) -> bool:
        """Whether a new request continues the earlier one, which the router may still run."""
        stopped = self._requests.get(request_id)
        if stopped is None or stopped.digest != digest:
            return False
        del self._requests[request_id]
        return True

    def extend(self, now: float) -> None:
        """The router has registered the gateway again, and stops these requests now; it may not report all ends."""
        for stopped in self._requests.values():
            stopped.until_s, stopped.awaited = now + FENCE_S, False

    def expire(self, now: float) -> list[str]:
        """The ids that are free again."""
        free = [
            request_id
            for request_id, stopped in self._requests.items()
            if now >= stopped.until_s and not stopped.awaited
        ]
        for request_id in free:
            del self._requests[request_id]
        return free
