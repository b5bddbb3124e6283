"""A driver that keeps the requests of a gateway's service and runs none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from baton.gateway.ended_request import RefusedRequest
from baton.protocol.errors import InvalidRequest
from baton.protocol.request import Request

SAYS = "that is as far as it goes"


class Taken:
    """In place of the driver: keeps the requests and runs none."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.traces = None

    def clock(self) -> float:
        return 0.0

    def refuse(self, refused: RefusedRequest) -> None:
        """Nothing listens."""

    def open(self, request: Request, emitted: Sequence[int], resume_from: int, trace: None) -> Any:
        self.requests.append(request)
        raise InvalidRequest(SAYS)
