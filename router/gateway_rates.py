"""Rates of gateways, from the totals in their load reports. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from baton.protocol.gateway_messages import GatewayLoad

WINDOW_S = 5.0


@dataclass(frozen=True, slots=True)
class Rates:
    """What a gateway does per second; 0 until it has sent two reports."""

    tokens_per_s: float = 0.0
    requests_per_s: float = 0.0
    cpu_share: float = 0.0  # CPU seconds per second


@dataclass(eq=False)
class GatewayRates:
    """The reports of the latest seconds, by gateway."""

    _reports: dict[str, tuple[str, deque[tuple[float, GatewayLoad]]]] = field(default_factory=dict)  # With incarnation

    def report(self, gateway: str, incarnation: str, load: GatewayLoad, now: float) -> None:
        """A gateway has sent a report."""
        known, reports = self._reports.get(gateway, ("", deque()))
        if known != incarnation:  # Its totals began again
            reports = deque()
            self._reports[gateway] = incarnation, reports
        reports.append((now, load))
        while now - reports[0][0] > WINDOW_S and len(reports) > 2:
            reports.popleft()

    def rates(self, gateway: str) -> Rates:
        """The gateway's rates over its latest reports."""
        _, reports = self._reports.get(gateway, ("", deque()))
        if len(reports) < 2:
            return Rates()
        (first_s, first), (last_s, last) = reports[0], reports[-1]
        seconds = max(last_s - first_s, 1e-3)
        return Rates(
            (last.tokens - first.tokens) / seconds,
            (last.requests - first.requests) / seconds,
            (last.cpu_s - first.cpu_s) / seconds,
        )

    def keep(self, gateways: Collection[str]) -> None:
        """Forget every other gateway."""
        self._reports = {name: reports for name, reports in self._reports.items() if name in gateways}
