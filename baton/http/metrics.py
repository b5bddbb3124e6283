"""Scrapes by Prometheus, for every process with an HTTP server."""

from __future__ import annotations

from baton.http.exchange import Exchange
from baton.http.response import HttpResponse
from baton.metrics.exposition import Exposition

METRICS_PATH = "/metrics"


async def metrics_response(metrics: Exposition, exchange: Exchange) -> HttpResponse:
    """The metrics now, in the format that the header `Accept` asks for."""
    body, content_type = await metrics.text(exchange.headers.get("accept", ""))
    return HttpResponse(200, {"content-type": content_type}, body)
