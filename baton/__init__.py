"""Baton: large language models served by prefill and decode workers that hand KV pages to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baton.admin import Admin
    from baton.answer import Answer, Token
    from baton.client import AsyncClient, Client
    from cluster.errors import (
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
    from cluster.request import Objectives, SamplingParams

__version__ = "0.1.0"

_EXPORTS = {
    "Admin": "baton.admin",
    "Answer": "baton.answer",
    "AsyncClient": "baton.client",
    "BatonError": "cluster.errors",
    "Cancelled": "cluster.errors",
    "Client": "baton.client",
    "ConfigError": "cluster.errors",
    "Conflict": "cluster.errors",
    "DeadlineExceeded": "cluster.errors",
    "InternalError": "cluster.errors",
    "InvalidRequest": "cluster.errors",
    "NoWorkers": "cluster.errors",
    "NotFound": "cluster.errors",
    "Objectives": "cluster.request",
    "Overloaded": "cluster.errors",
    "PermissionDenied": "cluster.errors",
    "SamplingParams": "cluster.request",
    "Token": "baton.answer",
    "Unauthenticated": "cluster.errors",
}
__all__ = [
    "Admin",
    "Answer",
    "AsyncClient",
    "BatonError",
    "Cancelled",
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


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for, so that `import baton` stays cheap."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'baton' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
