"""A cluster as an operator handles it: brought up by one command, found again and taken down by another."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from builtin_model import CHECKPOINT
from cluster.config import BatonConfig
from cluster.errors import ConfigError
from cluster.resolve import ModelFacts, Resolved, resolve
from deploy.local_ray import LocalRay, start_local_ray
from deploy.machine import machine_facts
from engine.checkpoint import read_config, resolve_model
from router.credentials import Credentials
from router.policy.policies import check_policy

Tell = Callable[[str, str], None]
BUILTIN = "built-in"


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """What `baton down` must know. `ray_folder` is empty when the Ray was there before us."""

    address: str
    workers: tuple[str, ...]
    ray_address: str
    ray_folder: str
    admin_address: str = ""


def state_file() -> Path:
    """Where the running cluster of this user is noted: $BATON_HOME (default ~/.baton)/cluster.json."""
    return Path(os.environ.get("BATON_HOME") or Path.home() / ".baton") / "cluster.json"


def running_cluster() -> RunningCluster | None:
    """The cluster that `up` noted, or None."""
    try:
        values = json.loads(state_file().read_text())
        return RunningCluster(**{**values, "workers": tuple(values["workers"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def resolve_here(config: BatonConfig) -> Resolved:
    """The configuration with every "auto" worked out for this machine and the model; unknown names are refused."""
    check_policy(config.router.policy)
    config = _with_whole_paths(config)
    folder = resolve_model(config.model.path) if config.model.path else CHECKPOINT
    model = read_config(folder)
    facts = ModelFacts(
        path=str(folder),
        name=config.model.path or BUILTIN,
        context_tokens=model.context_tokens,
        kv_values_per_token=2 * model.num_layers * model.num_kv_heads * model.head_dim,
    )
    resolved = resolve(config, machine_facts(), facts)
    access = resolved.access_plan()
    access.check(config.router.admin_host)
    Credentials(access)  # before anything is started: the router reads the same files again
    return resolved


def _with_whole_paths(config: BatonConfig) -> BatonConfig:
    """The router's process has another working folder than whoever wrote the paths."""
    access = config.access
    keys = ("tls_certificate", "tls_key", "client_ca", "tokens_file")
    whole = {key: str(Path(path).absolute()) for key in keys if (path := getattr(access, key))}
    return config.model_copy(update={"access": access.model_copy(update=whole)})


def up(resolved: Resolved, tell: Tell) -> RunningCluster:
    """Start Ray (unless $RAY_ADDRESS names one), router and workers; on any failure nothing stays behind."""
    if running_cluster() is not None:
        raise ConfigError("A cluster is up already: see `baton status`, or end it with `baton down`.")
    existing = os.environ.get("RAY_ADDRESS", "")
    tell("ray", f"connecting to {existing}" if existing else "starting")
    ray = LocalRay(existing, "") if existing else start_local_ray()
    try:
        from deploy.launcher import connected, start_cluster

        with connected(ray.address):
            tell("ray", f"ready at {ray.address}")
            # Noted before the actors start, so that an interrupted `up` can be cleaned up by `down`.
            _note(RunningCluster("", (), ray.address, ray.folder))
            started = start_cluster(resolved, tell)
        workers = tuple(started.workers)
        cluster = RunningCluster(started.address, workers, ray.address, ray.folder, started.admin_address)
        _note(cluster)
        return cluster
    except BaseException:
        _take_down(ray)
        raise


def down() -> RunningCluster | None:
    """End the noted cluster and its Ray; returns what was ended, None if there was nothing."""
    cluster = running_cluster()
    if cluster is not None:
        _take_down(LocalRay(cluster.ray_address, cluster.ray_folder))
    return cluster


def _take_down(ray: LocalRay) -> None:
    """Stop the actors kindly, then end our Ray; a Ray of others keeps running."""
    try:
        from deploy.launcher import connected, stop_cluster

        # A Ray that does not answer any more has no actors to be kind to.
        with contextlib.suppress(Exception), connected(ray.address):
            stop_cluster()
    finally:
        if ray.folder:
            ray.stop()
        state_file().unlink(missing_ok=True)


def _note(cluster: RunningCluster) -> None:
    path = state_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(cluster)))
