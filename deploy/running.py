"""The note that `up` leaves behind, by which later commands find the cluster."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """What later commands must know. `ray_folder` is empty when the Ray was there before us."""

    address: str  # where clients connect
    workers: tuple[str, ...]
    ray_address: str
    ray_folder: str
    worker_address: str = ""  # where workers connect
    admin_address: str = ""  # where operators do
    resolved: dict[str, Any] = field(default_factory=dict)  # `Resolved.as_json`


def state_file() -> Path:
    """Where the running cluster of this user is noted: $BATON_HOME (default ~/.baton)/cluster.json."""
    return Path(os.environ.get("BATON_HOME") or Path.home() / ".baton") / "cluster.json"


def running_cluster() -> RunningCluster | None:
    """The cluster that `up` noted, or None."""
    try:
        values = json.loads(state_file().read_text())
        cluster = RunningCluster(**{**values, "workers": tuple(values["workers"])})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    texts = (cluster.address, cluster.ray_address, cluster.ray_folder, cluster.worker_address, cluster.admin_address)
    sound = all(isinstance(text, str) for text in (*texts, *cluster.workers)) and isinstance(cluster.resolved, dict)
    return cluster if sound else None


def note(cluster: RunningCluster) -> None:
    """Write it down, whole or not at all."""
    path = state_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".new")
    written.write_text(json.dumps(asdict(cluster)))
    written.replace(path)
