"""A gateway's metrics on a port of their own: the gateways of a node share the ports for clients."""

from __future__ import annotations

from dataclasses import dataclass

from baton.access.access import WATCH, Access
from baton.access.hot_reload import HotReload
from baton.http.application import Handler, HttpApplication
from baton.http.exchange import Exchange
from baton.http.metrics import METRICS_PATH, metrics_response
from baton.http.response import HttpResponse
from baton.http.routes import Routes
from baton.metrics.exposition import Exposition


def check_watcher(exchange: Exchange, tokens: HotReload[Access] | None) -> None:
    """Raise `Unauthenticated` or `PermissionDenied` unless the caller may read metrics."""
    if tokens is not None:
        tokens.value.identify(exchange.authorization).require_role(WATCH)


@dataclass(eq=False)
class MetricsApp(HttpApplication):
    """Serves /metrics to callers with the role `watch` or `admin`."""

    metrics: Exposition
    tokens: HotReload[Access] | None

    def __post_init__(self) -> None:
        routes: dict[str, tuple[str, Handler]] = {METRICS_PATH: ("GET", self._metrics)}
        self.routes = Routes(routes)

    def check_caller(self, exchange: Exchange) -> None:
        """Every caller needs a token."""
        check_watcher(exchange, self.tokens)

    async def _metrics(self, exchange: Exchange) -> HttpResponse:
        return await metrics_response(self.metrics, exchange)
