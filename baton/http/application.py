"""An ASGI application: routes, the callers' rights, and errors as responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from baton.http.errors import error_response
from baton.http.exchange import Exchange
from baton.http.response import HttpResponse
from baton.http.routes import Routes
from baton.logs import log
from baton.protocol.errors import BatonError, InternalError

Handler = Callable[[Exchange], Awaitable[HttpResponse | None]]  # None: the response has been written


class HttpApplication(ABC):
    """Answers each request by the handler of its route."""

    routes: Routes[Handler]
    context_tokens: int | None = None  # Of the model, for errors about long prompts

    @abstractmethod
    def check_caller(self, exchange: Exchange) -> None:
        """Raise `Unauthenticated` or `PermissionDenied` if the caller may not ask for this path."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request; the ASGI interface."""
        exchange = Exchange(scope, receive, send)
        try:
            self.check_caller(exchange)
            response = await self.routes.find(scope["method"], scope["path"])(exchange)
        except BatonError as error:
            response = await self._failed(exchange, error)
        except Exception:  # noqa: BLE001
            log.exception(f"A defect ended the HTTP request {exchange.request_id}.")
            response = await self._failed(exchange, InternalError("A defect in Baton ended the request."))
        if response is not None:
            await exchange.respond(response)

    async def _failed(self, exchange: Exchange, error: BatonError) -> HttpResponse | None:
        """The response for an error; a stream that has begun ends with its event."""
        if not exchange.started:
            return error_response(error, context_tokens=self.context_tokens)
        await exchange.end(error_response(error, in_stream=True, context_tokens=self.context_tokens).body)
        return None
