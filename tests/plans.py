"""Configurations of routers that a test starts in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baton.config.process_config import ResolvedModel, RouterConfig
from baton.config.schema import AccessSection, RouterSection


def router_config(
    checkpoint: Path, *, access: AccessSection | None = None, worker_host: str = "127.0.0.1", **router: Any
) -> RouterConfig:
    """A float32 router on free ports; `router` are keys of its section."""
    model = ResolvedModel(path=str(checkpoint), dtype="float32", context_tokens=256)
    section = RouterSection.model_validate({"port": 0, "admin_port": 0, "lost_after_s": 3.0, "max_queued": 8, **router})
    return RouterConfig(model, "m", section, worker_host, access=access or AccessSection())
