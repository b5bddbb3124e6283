"""Baton: large language models served by prefill and decode workers that hand KV pages to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baton.client.admin import Admin
    from baton.client.answer import Answer, Token
    from baton.client.chat import Chat
    from baton.client.client import AsyncClient, Client
    from baton.protocol.errors import (
        BatonError,
        Cancelled,
        ConfigError,
        Conflict,
        DeadlineExceeded,
        InternalError,
        InvalidRequest,
        NotFound,
        NoWorkers,
        Overloaded,
        PermissionDenied,
        Unauthenticated,
    )
    from baton.protocol.request import Objectives, SamplingParams

__version__ = "0.1.0"
__all__ = [
    "Admin",
    "Answer",
    "AsyncClient",
    "BatonError",
    "Cancelled",
    "Chat",
    "Client",
    "ConfigError",
    "Conflict",
    "DeadlineExceeded",
    "InternalError",
    "InvalidRequest",
    "NoWorkers",
    "NotFound",
    "Objectives",
    "Overloaded",
    "PermissionDenied",
    "SamplingParams",
    "Token",
    "Unauthenticated",
]

_HOMES = {
    "Admin": "client.admin",
    "Answer": "client.answer",
    "AsyncClient": "client.client",
    "Chat": "client.chat",
    "Client": "client.client",
    "Objectives": "protocol.request",
    "SamplingParams": "protocol.request",
    "Token": "client.answer",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import baton` stays cheap."""
    if name not in __all__:
        raise AttributeError(f"module 'baton' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"baton.{_HOMES.get(name, 'protocol.errors')}"), name)
