"""A collector of traces in this process: OTLP over HTTP, as the OpenTelemetry Collector takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """A span with the process that sent it, and its attributes as plain values."""

    process: str
    service: str
    span: Span
    attributes: dict[str, object]

    @property
    def name(self) -> str:
        return str(self.span.name)

    @property
    def events(self) -> list[str]:
        return [event.name for event in self.span.events]


class Collector:
    """Keeps every span that it gets."""

    def __init__(self) -> None:
        self.server = make_server("127.0.0.1", 0, self._answer, handler_class=_SilentHandler)
        self.spans: list[CollectedSpan] = []
        self.keys: list[str] = []  # The header `x-key` of each request

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def of(self, trace_id: str) -> list[CollectedSpan]:
        """The spans of a trace, in the order of their start."""
        found = [one for one in self.spans if one.span.trace_id.hex() == trace_id]
        return sorted(found, key=lambda one: (one.span.start_time_unix_nano, one.name))

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        found = environ["PATH_INFO"] == "/v1/traces"
        if found:
            self.keys.append(environ.get("HTTP_X_KEY", ""))
            self._take(body)
        start_response("200 OK" if found else "404 Not Found", [("content-length", "0")])
        return []

    def _take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _plain(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [
                    CollectedSpan(
                        str(about["service.instance.id"]), str(about["service.name"]), span, _plain(span.attributes)
                    )
                    for span in scope.spans
                ]


def _plain(attributes: Iterable[KeyValue]) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value") or "") for one in attributes}


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: tests look at the spans."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()
    with collector.server as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
