"""The clients of a virtual cluster: each reads one stream, and checks that it gets each token once and in order."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.stream import TextToken
from baton.protocol.errors import NoRouter, NoWorkers, Overloaded
from baton.protocol.request import Objectives, Request
from baton.simulator.token_checker import Violation, expected_output
from baton.simulator.virtual_gateway import VirtualGateway

REFUSALS = (Overloaded, NoWorkers, NoRouter)  # after which a client asks again


@dataclass(eq=False)
class Clients:
    """What each client has received, by request id. Raises `Violation` for a gap, a repeat or a second end."""

    requests: dict[str, Request] = field(default_factory=dict)
    shown: dict[str, list[int]] = field(default_factory=dict)
    ended: dict[str, StreamEnd] = field(default_factory=dict)
    longest_pause_s: dict[str, float] = field(default_factory=dict)  # between two tokens, or before the first
    first_s: dict[str, float] = field(default_factory=dict)  # when the first token came
    readers: dict[str, VirtualGateway] = field(default_factory=dict)  # the gateway that each open stream is read from
    on_refused: Callable[[str], None] | None = None  # called for a request that is refused, instead of its end
    _last_s: dict[str, float] = field(default_factory=dict)

    def ask(self, request: Request, gateway: VirtualGateway) -> None:
        """A client sends a request to a gateway, for the first time or after it was refused."""
        self.readers[request.request_id] = gateway
        self.requests[request.request_id] = request
        self.shown[request.request_id] = []
        self._last_s.setdefault(request.request_id, request.arrival_s)

    def lose(self, request_id: str, lost: int) -> list[int]:
        """The client's connection breaks; the last `lost` tokens did not reach it. Returns those it has."""
        self.readers.pop(request_id, None)
        shown = self.shown[request_id]
        del shown[len(shown) - lost :]
        return shown

    def on_tokens(self, gateway: VirtualGateway, request_id: str, tokens: Seq[TextToken], now: float) -> None:
        """A gateway shows tokens; those for an earlier connection of the client are dropped."""
        if self.readers.get(request_id) is not gateway:
            return
        shown = self.shown[request_id]
        for token in tokens:
            if token.index != len(shown):
                raise Violation(f"{request_id} got token {token.index} after {len(shown)} tokens")
            shown.append(token.token_id)
        pause_s = now - self._last_s[request_id]
        self.longest_pause_s[request_id] = max(self.longest_pause_s.get(request_id, 0.0), pause_s)
        self._last_s[request_id] = now
        self.first_s.setdefault(request_id, now)

    def on_end(self, gateway: VirtualGateway, end: StreamEnd) -> None:
        """A gateway ends a stream."""
        if self.readers.get(end.request_id) is not gateway:
            return
        del self.readers[end.request_id]
        if self.on_refused is not None and isinstance(end.error, REFUSALS) and not self.shown[end.request_id]:
            self.on_refused(end.request_id)
            return
        if end.request_id in self.ended:
            raise Violation(f"{end.request_id} ended twice")
        self.ended[end.request_id] = end

    def met(self, request_id: str, objectives: Objectives) -> bool:
        """Whether the client got its whole answer, as soon and as fast as the objectives ask."""
        end, request = self.ended.get(request_id), self.requests.get(request_id)
        if end is None or end.error is not None or request is None or request_id not in self.first_s:
            return False
        first_s, gaps = self.first_s[request_id], len(self.shown[request_id]) - 1
        on_time = objectives.ttft_s is None or first_s - request.arrival_s <= objectives.ttft_s
        if not gaps or objectives.tpot_s is None:
            return on_time
        return on_time and self._last_s[request_id] - first_s <= gaps * objectives.tpot_s

    def check(self, request_id: str, ends: bool) -> None:
        """The tokens that the client has are right, and all there if the answer ended without an error."""
        shown, expected = self.shown[request_id], expected_output(self.requests[request_id], ends)
        end = self.ended.get(request_id)
        complete = end is not None and end.error is None
        if shown != (expected if complete else expected[: len(shown)]):
            raise Violation(f"{request_id} got {shown} instead of {expected}")
