"""What a process answers to a scrape: its own values, and what prometheus_client measures of any Python process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from baton.metrics.encoder import EOF, encode
from baton.metrics.values import Family


@dataclass(eq=False)
class Exposition:
    """The metrics of one process. `read` is called on the event loop, and the text is made in a thread."""

    read: Callable[[], Sequence[Family]]
    _process: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        ProcessCollector(registry=self._process)
        GCCollector(registry=self._process)

    async def text(self, accept: str) -> tuple[bytes, str]:
        """The text and its content type: OpenMetrics if the header `accept` asks for it, else Prometheus' format."""
        return await asyncio.to_thread(self.encode, self.read(), accept)

    def encode(self, families: Sequence[Family], accept: str) -> tuple[bytes, str]:
        """The text of values that were read, and its content type."""
        encoder, content_type = choose_encoder(accept)
        openmetrics = content_type.startswith("application/openmetrics-text")
        process = encoder(self._process).decode()
        if openmetrics:
            process = process.removesuffix(EOF)
        return (encode(families, openmetrics) + process + EOF * openmetrics).encode(), content_type
