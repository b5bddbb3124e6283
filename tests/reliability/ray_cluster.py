"""A cluster of the built-in model on a Ray of its own, for one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil
from ray._private.state import actors as actor_table

import baton
from baton.builtin_model import CHECKPOINT
from baton.client.errors import NoWorkers
from baton.config.parse import parse_config
from baton.config.ray_names import ROUTER
from baton.deploy.cluster import resolve_here
from baton.deploy.launcher import Started, start_cluster
from baton.deploy.local_ray import LocalRay, start_local_ray
from baton.deploy.ray_connection import connected


@contextmanager
def ray_cluster(
    pools: Mapping[str, int],
    *,
    ray: LocalRay | None = None,
    worker_host: str = "127.0.0.1",
    policy: str = "predicted_latency",
    **sections: Mapping[str, Any],
) -> Iterator[Started]:
    """Router and workers in float32, one thread each. `sections` adds to the configuration's `engine` or `placement`.

    A Ray that is not given is started. Either one is stopped at the end.
    """
    engine = {"num_pages": 400, "threads": 1, **sections.pop("engine", {})}
    config: dict[str, Any] = {
        "pools": dict(pools),
        "engine": engine,
        "gateway": {"port": 0, "http_port": 0},
        "router": {"admin_port": 0, "admin_http_port": 0, "policy": policy},
        "model": {"dtype": "float32", "path": str(CHECKPOINT)},
        **sections,
    }
    ray = ray or start_local_ray()
    try:
        with connected(ray):
            resolved = resolve_here(parse_config("", config))
            yield start_cluster(resolved, lambda process, stage: None, worker_host=worker_host)
    finally:
        ray.stop()


def router_pid(prefix: str = "") -> int:
    """The router's process on the Ray that this process is connected to; raises `NoWorkers` while Ray restarts it."""
    return actor_pid(prefix + ROUTER)


def actor_pid(name: str) -> int:
    """The process of an actor, by its whole name; raises `NoWorkers` while Ray restarts it."""
    for actor in actor_table(actor_state_name="ALIVE").values():
        if actor["Name"] == name and psutil.pid_exists(actor["Pid"]):
            return int(actor["Pid"])
    raise NoWorkers(f"{name} is not running.")


def workers_of(started: Started) -> dict[str, Any]:
    """Registered workers by name, as the admin API shows them."""
    with baton.Admin(started.admin_address) as admin:
        return {worker.name: worker for pool in admin.cluster().pools for worker in pool.workers}


def gateways_of(started: Started) -> dict[str, Any]:
    """Registered gateways by name, as the admin API shows them."""
    with baton.Admin(started.admin_address) as admin:
        return {gateway.name: gateway for gateway in admin.cluster().gateways}


def pids_of(started: Started) -> dict[str, int]:
    """The processes of router, gateways and workers by name."""
    members = {**gateways_of(started), **workers_of(started)}
    return {"router": router_pid(), **{name: member.pid for name, member in members.items()}}
