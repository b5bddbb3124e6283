"""The page's JSON: the messages of proto/baton/v1/admin.proto, with the names of their fields."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import parse_qs

import orjson
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from baton.http.application import Handler
from baton.http.exchange import Exchange
from baton.http.response import JSON, HttpResponse
from baton.protocol.errors import InvalidRequest, NotFound
from baton.protocol.v1 import admin_pb2
from baton.router.admin_calls import AdminCalls

HEADERS = {"content-type": JSON, "cache-control": "no-store", "x-content-type-options": "nosniff"}
OPERATIONS = "/api/operations/"
CANCEL = "/cancel"
M = TypeVar("M", bound=Message)


class PageApi:
    """The operators' calls as HTTP's."""

    def __init__(self, calls: AdminCalls) -> None:
        self._calls = calls

    def routes(self) -> dict[str, tuple[str, Handler]]:
        """Each path's methods and handler."""
        return {
            "/api/cluster": ("GET", self._cluster),
            "/api/explain": ("GET", self._explain),
            "/api/operations": ("GET, POST", self._operations),
            OPERATIONS: ("POST", self._cancel),
            "/api/links": ("GET", self._links),
            "/api/policy": ("GET, POST", self._policy),
            "/api/auto": ("POST", self._auto),
        }

    async def _cluster(self, exchange: Exchange) -> HttpResponse:
        return message_response(self._calls.cluster())

    async def _explain(self, exchange: Exchange) -> HttpResponse:
        return message_response(self._calls.explain(query(exchange, "id")))

    async def _operations(self, exchange: Exchange) -> HttpResponse:
        if exchange.scope["method"] == "POST":
            request = await _read(exchange, admin_pb2.StartOperationRequest())
            return message_response(self._calls.start_operation(request))
        return message_response(self._calls.operations())

    async def _cancel(self, exchange: Exchange) -> HttpResponse:
        path: str = exchange.scope["path"]
        if not path.endswith(CANCEL):
            raise NotFound(f"Unknown request URL: POST {path[:200]}. Did you mean {OPERATIONS}ID{CANCEL}?")
        return message_response(self._calls.cancel_operation(path[len(OPERATIONS) : -len(CANCEL)]))

    async def _links(self, exchange: Exchange) -> HttpResponse:
        return message_response(self._calls.links())

    async def _policy(self, exchange: Exchange) -> HttpResponse:
        if exchange.scope["method"] == "POST":
            return message_response(self._calls.policy((await _read(exchange, admin_pb2.SetPolicyRequest())).name))
        return message_response(self._calls.policy())

    async def _auto(self, exchange: Exchange) -> HttpResponse:
        return message_response(self._calls.set_auto((await _read(exchange, admin_pb2.SetAutoRequest())).on))


def query(exchange: Exchange, name: str) -> str:
    """A parameter of the URL; "" if it is missing."""
    text: bytes = exchange.scope["query_string"]
    return parse_qs(text.decode("latin-1")).get(name, [""])[-1]


def json_response(values: object) -> HttpResponse:
    """JSON that no cache keeps."""
    return HttpResponse(200, HEADERS, orjson.dumps(values))


def message_response(message: Message) -> HttpResponse:
    """A message as a response."""
    return json_response(fields(message))


def fields(message: Message) -> dict[str, Any]:
    """A message as JSON, including fields with default values."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


async def _read(exchange: Exchange, message: M) -> M:
    """The body as a message; raises `InvalidRequest` if it is not one."""
    try:
        return ParseDict(orjson.loads(await exchange.body()), message)
    except (orjson.JSONDecodeError, ParseError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not a {message.DESCRIPTOR.name}: {str(error)[:300]}") from None
