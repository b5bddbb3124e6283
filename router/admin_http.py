"""What the router serves operators over HTTP, on a port of its own beside gRPC's."""

from __future__ import annotations

from dataclasses import dataclass

from baton.access.access import WATCH, Access
from baton.access.hot_reload import HotReload
from baton.http.application import Handler, HttpApplication
from baton.http.exchange import Exchange
from baton.http.response import HttpResponse
from baton.http.routes import Routes
from baton.router.driver import Driver

PROBES = ("/health",)  # Callers need no token


@dataclass(eq=False)
class AdminHttp(HttpApplication):
    """Routes and access of the operators' HTTP."""

    driver: Driver
    tokens: HotReload[Access] | None

    def __post_init__(self) -> None:
        routes: dict[str, tuple[str, Handler]] = {"/health": ("GET", self._health)}
        self.routes = Routes(routes)

    def check_caller(self, exchange: Exchange) -> None:
        """Callers need a token with the role `watch` or `admin`, except for probes."""
        if self.tokens is not None and exchange.scope["path"] not in PROBES:
            self.tokens.value.identify(exchange.authorization).require_role(WATCH)

    def end_streams(self) -> None:
        """End running responses, because the router stops."""

    async def _health(self, exchange: Exchange) -> HttpResponse:
        return HttpResponse(200, {}, b"")
