"""Starts and stops a cluster's router, gateways and workers as Ray actors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray._private.state import actors as actor_table
from ray._private.worker import global_worker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from baton.config.placement import demand
from baton.config.process_config import GatewayAddresses
from baton.config.ray_names import GATEWAY, NAMESPACE, ROUTER
from baton.config.resolve import Resolved
from baton.deploy.container_limits import oom_kills
from baton.deploy.exit_reason import exit_reason, log_of
from baton.deploy.local_ray import free_port
from baton.deploy.machine import machine_facts
from baton.deploy.placement_groups import (
    actor_options,
    rank_options,
    release_empty_groups,
    release_groups,
    reserve_groups,
    reserve_own_groups,
)
from baton.gateway.actor import GatewayActor
from baton.links.keys import new_secret
from baton.protocol.errors import ConfigError
from baton.router.actor import RouterActor
from baton.worker.actor import WorkerActor

POLL_S = 0.1
CLOCK_S = 1.0  # Modification times of files may lag behind the clock by this.
MAX_STOP_S = 70.0  # gateway.stop_grace_s is 60 at most.
WORKERS_S = 2.0  # Part of the time to stop a cluster that is kept for its workers.
Progress = Callable[[str, str], None]  # (process name, what it is doing)


@dataclass(frozen=True, slots=True)
class Started:
    """The addresses of a started cluster, and the names of its workers."""

    addresses: list[str]  # For gRPC clients, of each gateway
    worker_address: str  # The router's, for workers and gateways
    workers: list[str]
    admin_address: str  # For operators
    admin_http_address: str = ""  # For operators over HTTP; "": no HTTP
    http_address: str = ""  # For HTTP clients, of the first gateway; "": no HTTP

    @property
    def address(self) -> str:
        """The first gateway's address."""
        return self.addresses[0]


def start_cluster(resolved: Resolved, report: Progress, prefix: str = "", worker_host: str = "127.0.0.1") -> Started:
    """Start router, gateways and workers as detached actors and wait until every process serves.

    `prefix` goes before actor names, so that several clusters can share one Ray. `worker_host` is the address where
    router and gateways listen for workers; empty: that of their node in the Ray. Raises `ConfigError` with the reason
    when a process cannot start; the actors that did start are left to `stop_cluster`.
    """
    node_address = ray.util.get_node_ip_address()
    plan = resolved.router_config(worker_host or node_address)
    section = plan.router
    report(ROUTER, "starting")
    # A restarted router needs the same ports, so ports that are left open are chosen here.
    plan = replace(
        plan,
        router=plan.router.changed(
            admin_port=section.admin_port or free_port(section.admin_host),
            admin_http_port=section.admin_http_port or free_port(section.admin_host),
        ),
        worker_port=plan.worker_port or free_port(plan.worker_host),
        link_secret=new_secret(),
    )
    router = RouterActor.options(  # type: ignore[attr-defined]
        name=prefix + ROUTER, lifetime="detached", scheduling_strategy=_here()
    ).remote(plan, prefix)
    addresses = ray.get(router.start.remote())
    if isinstance(addresses, str):
        raise ConfigError(addresses)
    report(ROUTER, f"serving administration on {addresses.words}")
    gateways = start_gateways(resolved, addresses.worker, report, prefix, worker_host)
    reserve_groups(resolved, prefix)
    start_workers(resolved, resolved.roles, addresses.worker, report, prefix)
    workers = [name for name, _ in resolved.roles]
    public = [gateway.public for gateway in gateways]
    return Started(public, addresses.worker, workers, addresses.admin, addresses.admin_http, gateways[0].http)


def start_gateways(
    resolved: Resolved, router_address: str, report: Progress, prefix: str = "", worker_host: str = ""
) -> list[GatewayAddresses]:
    """Start the gateways and wait until each serves; returns their addresses.

    They listen on one port per protocol, which those of a node share. A gateway without a placement of its own runs on
    the command's node: clients connect to this one, and the autoscaler does not remove it. Raises `ConfigError` when
    one cannot start.
    """
    section = resolved.config.gateway
    # A restarted gateway, and its neighbours, need the same ports.
    section = section.changed(
        port=section.port or free_port(section.host), http_port=section.http_port or free_port(section.host)
    )
    wanted = demand(resolved.config, GATEWAY)
    began_s = time.time() - CLOCK_S
    actors = {}
    for name in resolved.gateways:
        keys = ray.get(_router(prefix).peer_keys.remote(name))
        plan = replace(resolved.gateway_config(name, router_address, worker_host), gateway=section, link_keys=keys)
        options = actor_options(resolved, name, GATEWAY, prefix)
        if not wanted.words:
            options["scheduling_strategy"] = _here()
        actors[name] = _actor(GatewayActor, prefix, name, options, plan)
        report(name, f"waiting for a node with {wanted.words}" if wanted.words else "starting")
    served = []
    for name, actor in actors.items():
        try:
            addresses = ray.get(actor.start.remote())
        except ray.exceptions.RayError as death:
            raise _died(name, str(death), began_s, oom=False) from None
        if isinstance(addresses, str):
            raise ConfigError(addresses)
        report(name, f"serving {addresses.words}")
        served.append(addresses)
    return served


def _actor(kind: Any, prefix: str, name: str, options: dict[str, Any], *arguments: Any) -> Any:
    """A detached actor, which Ray starts once a node has room; raises `ConfigError` when Ray refuses to place it."""
    try:
        return kind.options(name=prefix + name, lifetime="detached", **options).remote(*arguments)
    except ValueError as refusal:
        raise ConfigError(f"Ray refuses to place {name}: {refusal}") from None


def _died(name: str, death: str, began_s: float, oom: bool) -> ConfigError:
    """The error of an actor whose process ended while it started; `oom`: the kernel has killed one to free memory."""
    log = log_of(name, Path(global_worker.node.get_logs_dir_path()), began_s)
    return ConfigError(f"{name} could not start: {exit_reason(log, oom, machine_facts().free.words, death)}")


def _here() -> NodeAffinitySchedulingStrategy:
    """The command's node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def start_workers(
    resolved: Resolved, workers: list[tuple[str, str]], worker_address: str, report: Progress, prefix: str = ""
) -> None:
    """Start workers, given as (name, role), and wait until each serves, without a time limit for nodes to join.

    Raises `ConfigError` when a worker cannot start; the others are left to `stop_workers`.
    """
    reserve_own_groups(resolved, workers, prefix)
    actors = {}
    for name, role in workers:
        keys = ray.get(_router(prefix).peer_keys.remote(name))
        plan = replace(resolved.worker_config(name, role, worker_address), link_keys=keys)
        options, of_ranks = (make(resolved, name, role, prefix) for make in (actor_options, rank_options))
        actors[name] = _actor(WorkerActor, prefix, name, options, plan, of_ranks)
        words = demand(resolved.config, role).words
        report(name, f"waiting for a node with {words}" if words else "starting")
    _wait_loaded(actors, report)


def _wait_loaded(actors: dict[str, Any], report: Progress) -> None:
    killed, began_s = oom_kills(), time.time() - CLOCK_S
    waiting = {actor.wait_loaded.remote(): name for name, actor in actors.items()}
    # One call per actor at a time: calls to an actor that still waits for a node queue up.
    asked = {actor.stage.remote(): name for name, actor in actors.items()}
    while waiting:
        for reference in ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else ():
            name = asked.pop(reference)
            if name in waiting.values():
                with contextlib.suppress(ray.exceptions.RayError):  # `wait_loaded` reports it below.
                    report(name, ray.get(reference))
                    asked[actors[name].stage.remote()] = name
        done, _ = ray.wait(list(waiting), timeout=POLL_S)
        for reference in done:
            name = waiting.pop(reference)
            try:
                error = ray.get(reference)
            except ray.exceptions.RayError as death:
                raise _died(name, str(death), began_s, oom_kills() > killed) from None
            if error:
                raise ConfigError(f"{name} could not start: {error}")
            report(name, "serving")


def live_actors(prefix: str = "") -> list[str]:
    """Names of the live actors: router, gateways, and workers, including those that wait for a node."""
    return sorted(name.removeprefix(prefix) for name in _actor_names(prefix))


def live_workers(prefix: str = "") -> set[str]:
    """Names of the workers with a live actor, including those that wait for a node."""
    return {name for name in live_actors(prefix) if name != ROUTER and not name.startswith(f"{GATEWAY}-")}


def stop_workers(resolved: Resolved, names: list[str], prefix: str = "", timeout_s: float = 10.0) -> None:
    """End workers, each after a goodbye to the router; a placement group is removed with its last worker."""
    _stop([prefix + name for name in names], timeout_s)
    release_empty_groups(resolved, prefix, live_workers(prefix) - set(names))


def stop_cluster(prefix: str = "", timeout_s: float = MAX_STOP_S) -> list[str]:
    """End every actor of the cluster within about `timeout_s`, and remove its placement groups; returns their names.

    The gateways stop first, and give running streams time to end, then the router.
    """
    deadline = time.monotonic() + timeout_s
    names = _actor_names(prefix)
    gateways = [name for name in names if name.startswith(f"{prefix}{GATEWAY}-")]
    router = [name for name in names if name == prefix + ROUTER]
    rest = [name for name in names if name not in (*gateways, *router)]
    _stop(gateways, timeout_s - min(WORKERS_S, timeout_s / 2))
    _stop(router, max(0.0, deadline - time.monotonic() - min(WORKERS_S, timeout_s / 2)))
    _stop(rest, max(0.0, deadline - time.monotonic()))
    release_groups(prefix)
    return sorted(names)


def _actor_names(prefix: str) -> list[str]:
    return [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix)
    ]


def _stop(names: list[str], timeout_s: float) -> None:
    """Kill actors; those that run may send a goodbye first, those that wait for a node could not."""
    running = {each["Name"] for each in actor_table(actor_state_name="ALIVE").values()} if timeout_s else set()
    stops: list[Any] = []
    ended: list[Any] = []
    for name in names:
        with contextlib.suppress(ValueError):
            ended.append(ray.get_actor(name, namespace=NAMESPACE))
            if name in running:
                stops.append(ended[-1].stop.remote())
    if stops:
        ray.wait(stops, num_returns=len(stops), timeout=timeout_s)
    for actor in ended:
        ray.kill(actor)


def _router(prefix: str) -> Any:
    return ray.get_actor(prefix + ROUTER, namespace=NAMESPACE)
