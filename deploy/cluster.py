"""A cluster as an operator handles it: brought up by one command, found again and taken down by another."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from builtin_model import CHECKPOINT
from cluster.config import BatonConfig
from cluster.errors import ConfigError
from cluster.resolve import ModelFacts, Resolved, resolve
from deploy.local_ray import LocalRay, loopback, start_local_ray
from deploy.machine import machine_facts
from deploy.preflight import check_start, ray_host
from deploy.running import RunningCluster, note, running_cluster, state_file
from engine.checkpoint import check_weights, read_config, read_sampling_defaults, resolve_model
from engine.tokenizer import check_tokenizer
from router.credentials import Credentials
from router.policy.policies import check_policy

Tell = Callable[[str, str], None]
BUILTIN = "built-in"


def resolve_here(config: BatonConfig) -> Resolved:
    """The configuration with every "auto" worked out for this machine and the model; unknown names are refused."""
    check_policy(config.router.policy)
    config = _with_whole_paths(config)
    folder = resolve_model(config.model.path) if config.model.path else CHECKPOINT
    model = read_config(folder)
    check_weights(folder, model)
    check_tokenizer(folder)
    facts = ModelFacts(
        # A model of the hub is fetched by each node itself: its folder here is none elsewhere.
        path=config.model.path
        if config.model.path and not Path(config.model.path).expanduser().is_dir()
        else str(folder),
        name=config.model.path or BUILTIN,
        context_tokens=model.context_tokens,
        kv_values_per_token=2 * model.num_layers * model.num_kv_heads * model.head_dim,
        sampling=read_sampling_defaults(folder),
        num_parameters=model.num_parameters,
        layer_values=2 * model.hidden_size + model.qkv_size + 3 * model.intermediate_size,
        vocab_size=model.vocab_size,
        window_limits=model.window_limits,
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
    check_start(resolved.config.router)
    existing = os.environ.get("RAY_ADDRESS", "")
    tell("ray", f"connecting to {existing}" if existing else "starting")
    ray = LocalRay(existing, "") if existing else start_local_ray(host=ray_host())
    try:
        from deploy.launcher import connected, start_cluster

        with connected(ray):
            tell("ray", f"ready at {ray.address}")
            # Noted before the actors start, so that an interrupted `up` can be cleaned up by `down`.
            note(RunningCluster("", (), ray.address, ray.folder))
            # Nobody else has nodes in our own Ray; in any other one workers may be on nodes that cannot reach loopback.
            started = start_cluster(resolved, tell, worker_host=loopback() if ray.folder else "")
        cluster = RunningCluster(
            address=started.address,
            workers=tuple(started.workers),
            ray_address=ray.address,
            ray_folder=ray.folder,
            worker_address=started.worker_address,
            admin_address=started.admin_address,
            resolved=resolved.as_json(),
        )
        note(cluster)
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
        with contextlib.suppress(Exception), connected(ray):
            stop_cluster()
    finally:
        if ray.folder:
            ray.stop()
        state_file().unlink(missing_ok=True)
