"""A collector of traces in this process: OTLP over HTTP, as the OpenTelemetry Collector takes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

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


class Collector(ThreadingHTTPServer):
    """Keeps every span that it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[CollectedSpan] = []
        self.headers: list[dict[str, str]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def of(self, trace_id: str) -> list[CollectedSpan]:
        """The spans of a trace, in the order of their start."""
        found = [one for one in self.spans if one.span.trace_id.hex() == trace_id]
        return sorted(found, key=lambda one: (one.span.start_time_unix_nano, one.name))

    def take(self, body: bytes) -> None:
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


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        found = self.path == "/v1/traces"
        if found:
            self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.server.take(body)
        self.send_response(200 if found else 404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: tests look at the spans."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    with Collector() as collector:
        thread = Thread(target=collector.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()
