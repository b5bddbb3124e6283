"""What the router serves operators over HTTP, on a port of its own beside gRPC's: the page and its API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from baton.access.access import ADMIN, WATCH, Access
from baton.access.hot_reload import HotReload
from baton.http.application import Handler, HttpApplication
from baton.http.exchange import Exchange
from baton.http.metrics import METRICS_PATH, metrics_response
from baton.http.response import JSON, HttpResponse
from baton.http.routes import Routes
from baton.metrics.exposition import Exposition
from baton.protocol.errors import BatonError, NoWorkers, PermissionDenied
from baton.router.admin_calls import AdminCalls
from baton.router.discovery import DISCOVERY_PATH, discovery_body
from baton.router.page.api import PageApi, json_response
from baton.router.page.feed import PageFeed
from baton.router.page.files import page_files
from baton.router.page.origin import READS, check_host, check_origin

PROBES = ("/health", "/liveness", "/readiness")  # Callers need no token
EMPTY = HttpResponse(200, {}, b"")


@dataclass(eq=False)
class AdminHttp(HttpApplication):
    """Routes and access of the operators' HTTP."""

    calls: AdminCalls
    metrics: Exposition
    tokens: HotReload[Access] | None
    loopback: bool  # Only this machine reaches the port
    client_ca: bool  # Callers have shown a certificate

    def __post_init__(self) -> None:
        self.feed = PageFeed(self.calls)
        files = page_files()
        self._public = (*PROBES, *files)
        routes: dict[str, tuple[str, Handler]] = {
            "/health": ("GET", self._alive),
            "/liveness": ("GET", self._alive),
            "/readiness": ("GET", self._ready),
            METRICS_PATH: ("GET", self._metrics),
            DISCOVERY_PATH: ("GET", self._discovery),
            "/api/events": ("GET", self._events),
            "/api/requests": ("GET", self._requests),
            **PageApi(self.calls).routes(),
        }
        self.routes = Routes(routes | {path: ("GET", _always(response)) for path, response in files.items()})

    def check_caller(self, exchange: Exchange) -> None:
        """Reading needs the role `watch` or `admin`, acting `admin`; probes and the page's own files need no token.

        Without tokens every program of this machine may act on a loopback port, but no other site's page in a browser.
        """
        method, path, reads = exchange.scope["method"], exchange.scope["path"], exchange.scope["method"] in READS
        if path in PROBES:
            return
        if self.tokens is None and self.loopback:
            check_host(exchange.headers)
        if path in self._public:
            return
        if self.tokens is not None:
            self.tokens.value.identify(exchange.authorization).require_role(WATCH if reads else ADMIN)
        elif not (reads or self.loopback or self.client_ca):
            raise PermissionDenied("Over HTTP only operators with a token may act: set access.tokens_file.")
        check_origin(method, exchange.headers)

    def end_streams(self) -> None:
        """End running responses, because the router stops."""
        self.feed.stop()

    async def _events(self, exchange: Exchange) -> HttpResponse | None:
        if exchange.scope["method"] == "HEAD":
            return HttpResponse(200, {"content-type": "text/event-stream; charset=utf-8"}, b"")
        await self.feed.serve(exchange, lambda: self._may_read(exchange))
        return None

    def _may_read(self, exchange: Exchange) -> bool:
        """Whether the caller's token is still listed."""
        try:
            self.check_caller(exchange)
        except BatonError:
            return False
        return True

    async def _requests(self, exchange: Exchange) -> HttpResponse:
        return json_response({"requests": self.feed.requests()})

    async def _alive(self, exchange: Exchange) -> HttpResponse:
        return EMPTY

    async def _ready(self, exchange: Exchange) -> HttpResponse:
        """A worker of each needed role serves."""
        missing = self.calls.driver.core.gateways.pools.missing
        if missing:
            raise NoWorkers(f"No {missing} worker serves now.")
        return EMPTY

    async def _metrics(self, exchange: Exchange) -> HttpResponse:
        return await metrics_response(self.metrics, exchange)

    async def _discovery(self, exchange: Exchange) -> HttpResponse:
        """Prometheus has reached the router at the address in the header `Host`."""
        views = self.calls.driver.core.gateways.by_name
        gateways = {name: view.info.metrics_address for name, view in views.items()}
        tls = exchange.scope["scheme"] == "https"
        return HttpResponse(200, {"content-type": JSON}, discovery_body(exchange.headers["host"], gateways, tls))


def _always(response: HttpResponse) -> Callable[[Exchange], Awaitable[HttpResponse]]:
    async def answer(exchange: Exchange) -> HttpResponse:
        return response

    return answer
