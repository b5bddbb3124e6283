"""Brings a cluster up as Ray actors, and takes it down again."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray

from cluster.errors import ConfigError
from cluster.resolve import Resolved
from router.actor import RouterActor
from router.worker_gate import new_link_keys
from worker.actor import WorkerActor

NAMESPACE = "baton"
ROUTER = "router"
POLL_S = 0.1
Tell = Callable[[str, str], None]  # (process name, what it is doing)


@contextlib.contextmanager
def connected(ray_address: str) -> Iterator[None]:
    """This process as a driver of the Ray at `ray_address`, quietly and with its own signal handlers."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(
        address=ray_address,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
    )
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray's own for SIGTERM aborts the process
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True, slots=True)
class Started:
    """Where the cluster answers."""

    address: str
    workers: list[str]
    admin_address: str


def start_cluster(resolved: Resolved, tell: Tell, prefix: str = "") -> Started:
    """Start router and workers as detached actors and wait until every worker serves.

    `prefix` goes before actor names, so that several clusters share one Ray. Raises `ConfigError` with the reason
    when a process cannot start; what was started stays for `stop_cluster`.
    """
    keys = new_link_keys()
    plan = replace(resolved.router_plan(), link_keys=keys.router)
    tell(ROUTER, "starting")
    router = RouterActor.options(name=prefix + ROUTER, lifetime="detached").remote()  # type: ignore[attr-defined]
    addresses = ray.get(router.start.remote(plan))
    if isinstance(addresses, str):
        raise ConfigError(addresses)
    tell(ROUTER, f"serving gRPC on {addresses.public}, administration on {addresses.admin}")
    actors = {
        name: WorkerActor.options(name=prefix + name, lifetime="detached").remote(  # type: ignore[attr-defined]
            replace(resolved.worker_plan(name, role, addresses.worker), link_keys=keys.worker)
        )
        for name, role in resolved.roles
    }
    _wait_loaded(actors, tell)
    return Started(addresses.public, list(actors), addresses.admin)


def _wait_loaded(actors: dict[str, Any], tell: Tell) -> None:
    waiting = {actor.wait_loaded.remote(): name for name, actor in actors.items()}
    while waiting:
        for name in waiting.values():
            with contextlib.suppress(ray.exceptions.GetTimeoutError):
                tell(name, ray.get(actors[name].stage.remote(), timeout=POLL_S))
        done, _ = ray.wait(list(waiting), timeout=POLL_S)
        for reference in done:
            name = waiting.pop(reference)
            try:
                error = ray.get(reference)
            except ray.exceptions.RayError as failure:
                error = f"its process died ({str(failure).splitlines()[0]})"
            if error:
                raise ConfigError(f"{name} could not start: {error}")
            tell(name, "serving")


def stop_cluster(prefix: str = "", timeout_s: float = 10.0) -> list[str]:
    """Stop every actor of the cluster, the router last; returns their names."""
    names = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix)
    ]
    names.sort(key=lambda name: (name == prefix + ROUTER, name))
    stops: list[Any] = []
    actors: list[Any] = []
    for name in names:
        with contextlib.suppress(ValueError):
            actors.append(ray.get_actor(name, namespace=NAMESPACE))
            stops.append(actors[-1].stop.remote())
    if stops:
        ray.wait(stops, num_returns=len(stops), timeout=timeout_s)
    for actor in actors:
        ray.kill(actor)
    return names
