"""Starts the export of spans, if it is configured: only then are OpenTelemetry's libraries imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baton.config.schema import TracingSection
from baton.protocol.errors import ConfigError

if TYPE_CHECKING:
    from baton.tracing.export import SpanExport


def check_tracing(section: TracingSection) -> None:
    """Raise `ConfigError` for an endpoint without the libraries."""
    if not section.endpoint:
        return
    try:
        import baton.tracing.export  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"tracing.endpoint needs OpenTelemetry's libraries ({error}): pip install 'baton-serve[tracing]'."
        ) from None


def start_export(section: TracingSection, process: str) -> SpanExport | None:
    """The export of a process's spans; None without an endpoint. Raises `ConfigError` without the libraries."""
    if not section.endpoint:
        return None
    check_tracing(section)
    from baton.tracing.export import SpanExport

    return SpanExport(section, process)
