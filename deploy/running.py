"""The note by which later commands find the cluster: written before anything is started, removed when all has ended.

A note belongs to one cluster, identified by its id. Only that cluster's commands change or remove it, one at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from baton.deploy.processes import NotedProcess
from baton.protocol.errors import ConfigError

STATES = ("starting", "up", "ending")


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """The contents of the note."""

    address: str  # For gRPC clients, of the first gateway; empty while the cluster starts.
    workers: tuple[str, ...]
    ray_address: str
    ray_folder: str  # Empty for a Ray of others.
    gateway_addresses: tuple[str, ...] = ()  # For gRPC clients, of each gateway.
    http_address: str = ""  # For HTTP clients, of the first gateway; empty without HTTP.
    worker_address: str = ""  # The router's, for workers and gateways.
    admin_address: str = ""  # For operators.
    admin_http_address: str = ""  # For operators over HTTP; empty without HTTP.
    resolved: dict[str, Any] = field(default_factory=dict)  # `Resolved.as_json`
    id: str = ""
    state: str = "up"  # One of STATES.
    changed_by: NotedProcess | None = None  # The command that is starting or ending the cluster.
    vital: tuple[NotedProcess, ...] = ()  # The processes without which our own Ray is dead.
    ends_with: NotedProcess | None = None  # The command that owns the cluster: the cluster ends with it.

    @property
    def http_words(self) -> str:
        """Where HTTP clients connect, to follow the address of gRPC clients."""
        return f", the OpenAI API on {self.scheme}://{self.http_address}/v1" if self.http_address else ""

    @property
    def page_url(self) -> str:
        """The operators' page; empty without HTTP for operators."""
        return f"{self.scheme}://{self.admin_http_address}/" if self.admin_http_address else ""

    @property
    def scheme(self) -> str:
        """Of its HTTP addresses."""
        return "https" if self.resolved.get("config", {}).get("access", {}).get("tls_certificate") else "http"

    @property
    def prefix(self) -> str:
        """Prefix of the actors' names: a Ray of others may hold several clusters."""
        return "" if self.ray_folder or not self.id else f"{self.id[:8]}-"


def home() -> Path:
    """The folder of this user's notes: $BATON_HOME, by default ~/.baton."""
    return Path(os.environ.get("BATON_HOME") or Path.home() / ".baton")


def state_file(folder: Path | None = None) -> Path:
    """The note of the running cluster: cluster.json in the folder, by default in `home()`."""
    return (folder or home()) / "cluster.json"


def running_cluster(folder: Path | None = None) -> RunningCluster | None:
    """The noted cluster, or None. `baton.deploy.look` finds out whether it is alive.

    Raises `OSError` when there is a note that cannot be read now.
    """
    try:
        return _cluster(json.loads(state_file(folder).read_text()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, RecursionError):
        return None


def claim_note(cluster: RunningCluster, folder: Path | None = None) -> None:
    """Note a cluster that is about to be started; raises `ConfigError` when there is a note already."""
    with _locked(folder):
        if running_cluster(folder) is not None:
            raise ConfigError("Another cluster was noted just now: see `baton status`, or end it with `baton down`.")
        _write(cluster, folder)


def update_note(cluster: RunningCluster, folder: Path | None = None) -> None:
    """Replace the note of this cluster; raises `ConfigError` when it is gone or another command is changing it."""
    change_note(cluster.id, lambda noted: cluster, folder)


def change_note(
    cluster_id: str, change: Callable[[RunningCluster], RunningCluster], folder: Path | None = None
) -> None:
    """Apply a function to the note of this cluster, under its lock; raises `ConfigError` as `update_note` does."""
    with _locked(folder):
        noted = running_cluster(folder)
        if noted is None or noted.id != cluster_id:
            raise ConfigError("The cluster was ended by another command.")
        changer = noted.changed_by
        if changer is not None and changer.lives and changer.pid != os.getpid():
            raise ConfigError(f"The cluster is being changed by {changer.name} (process {changer.pid}): try again.")
        _write(change(noted), folder)


def remove_note(cluster_id: str, folder: Path | None = None) -> None:
    """Remove the note, if it is this cluster's."""
    with _locked(folder):
        noted = running_cluster(folder)
        if noted is not None and noted.id == cluster_id:
            state_file(folder).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path | None) -> Iterator[None]:
    """Hold the note's lock, which the kernel releases when a command dies."""
    path = state_file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(cluster: RunningCluster, folder: Path | None) -> None:
    """Replace the note, atomically."""
    path = state_file(folder)
    written = path.with_suffix(".new")
    written.write_text(json.dumps(asdict(cluster)))
    written.replace(path)


def _cluster(values: Any) -> RunningCluster | None:
    if not isinstance(values, dict):
        return None
    changer, demo = values.get("changed_by"), values.get("ends_with")
    cluster = RunningCluster(
        **{
            **values,
            "workers": tuple(values["workers"]),
            "gateway_addresses": tuple(values.get("gateway_addresses", ())),
            "changed_by": None if changer is None else NotedProcess.from_json(changer),
            "ends_with": None if demo is None else NotedProcess.from_json(demo),
            "vital": tuple(NotedProcess.from_json(process) for process in values.get("vital", ())),
        }
    )
    texts = (cluster.address, cluster.ray_address, cluster.ray_folder, cluster.worker_address, cluster.admin_address)
    names = (cluster.id, cluster.http_address, cluster.admin_http_address, *cluster.workers, *cluster.gateway_addresses)
    sound = all(isinstance(text, str) for text in (*texts, *names))
    return cluster if sound and isinstance(cluster.resolved, dict) and cluster.state in STATES else None
