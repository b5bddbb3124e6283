"""Whole responses, and the errors of requests that no handler takes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.errors import InvalidRequest, NotFound

JSON = "application/json"
MAX_BODY_BYTES = 10 << 20


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole response, or with status 200 the last events of a stream."""

    status: int
    headers: dict[str, str]
    body: bytes


class RouteNotFound(NotFound):
    """The server has no such path."""

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"Unknown request URL: {method} {path[:200]}. Baton does not serve it.")


class MethodNotAllowed(InvalidRequest):
    """The path exists for other methods."""

    def __init__(self, method: str, path: str, allowed: str) -> None:
        super().__init__(f"{method} {path[:200]} is not allowed: use {allowed}.")
        self.allowed = allowed


class BodyTooLarge(InvalidRequest):
    """The body has more bytes than are read."""
