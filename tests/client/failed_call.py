"""A failed call as gRPC reports it, without a call."""

from __future__ import annotations

import grpc


class Failed(grpc.RpcError):
    """A failed call as gRPC reports it."""

    def __init__(self, status: str, details: str, **trailers: str) -> None:
        self._status, self._details, self._trailers = status, details, trailers

    def code(self) -> grpc.StatusCode:
        return getattr(grpc.StatusCode, self._status)  # type: ignore[no-any-return]

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple((key.replace("_", "-"), value) for key, value in self._trailers.items())
