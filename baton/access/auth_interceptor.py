"""The auth interceptor of a gRPC server: refuses calls without a token of the server's role."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc

from baton.access.access import Access
from baton.access.hot_reload import HotReload
from baton.access.status_mapping import abort
from baton.protocol.errors import BatonError

OPEN_METHODS = "/grpc.health.v1.Health/"  # Health checkers have no token

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]]


@dataclass(frozen=True, slots=True, eq=False)
class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Checks every call before it reaches a service, so that later methods are protected, too."""

    tokens: HotReload[Access]
    role: str

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        """The service's handler for an authorised call, else one that ends the call with the error."""
        if handler_call_details.method.startswith(OPEN_METHODS):
            return await continuation(handler_call_details)
        try:
            self.tokens.value.identify(handler_call_details.invocation_metadata).require_role(self.role)
        except BatonError as error:
            return _refusal(error)
        return await continuation(handler_call_details)


def _refusal(error: BatonError) -> grpc.RpcMethodHandler:
    """A handler that ends any kind of call with the error, without reading the request."""

    async def refuse(requests: object, context: grpc.aio.ServicerContext) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
