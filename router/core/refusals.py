"""Requests that were refused before a worker had any part of them: their causes, and the newest few. Pure."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from baton.protocol.errors import BatonError, Overloaded

KEPT = 64


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused request; `cause` is a word: of an `Overloaded` its own, else the error's class."""

    at_s: float
    request_id: str
    gateway: str
    cause: str
    message: str


@dataclass(eq=False)
class Refusals:
    """By cause, which are few, since the router started."""

    by_cause: Counter[str] = field(default_factory=Counter)
    newest: deque[Refusal] = field(default_factory=lambda: deque(maxlen=KEPT))

    def add(self, request_id: str, gateway: str, error: BatonError, now: float) -> None:
        """A request was refused with this error."""
        cause = error.cause if isinstance(error, Overloaded) else type(error).__name__
        self.by_cause[cause] += 1
        self.newest.append(Refusal(now, request_id, gateway, cause, error.message))
