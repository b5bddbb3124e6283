"""Brings a cluster up as Ray actors, and takes it down again."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import _raylet
from ray._private import ray_constants, worker
from ray._private.state import actors as actor_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from baton.config.placement import demand
from baton.config.ray_names import NAMESPACE, ROUTER
from baton.config.resolve import Resolved
from baton.deploy.container_limits import oom_kills
from baton.deploy.interrupts import interrupts_wait
from baton.deploy.last_words import log_of, why_ended
from baton.deploy.local_ray import LocalRay, free_port
from baton.deploy.look import reached
from baton.deploy.machine import machine_facts
from baton.deploy.placement_groups import actor_options, release_empty_groups, release_groups, reserve_groups
from baton.deploy.processes import import_root
from baton.protocol.address import reachable
from baton.protocol.errors import ConfigError
from baton.router.access.zap_authenticator import new_link_keys
from baton.router.actor import RouterActor
from baton.worker.actor import WorkerActor

POLL_S = 0.1
CLOCK_S = 1.0  # by which the times of files may be behind
MAX_STOP_S = 70.0  # router.stop_grace_s is 60 at most
WORKERS_S = 2.0  # of the time to stop a cluster, for its workers
Progress = Callable[[str, str], None]  # (process name, what it is doing)


@contextlib.contextmanager
def connected(local: LocalRay) -> Iterator[None]:
    """This process as a driver of a Ray, quietly and with its own signal handlers."""
    if reached(local.address) != "answers":
        raise ConfigError(f"Ray does not answer at {local.address}: start it again, or name another in $RAY_ADDRESS.")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    worker.print_to_stdstream = _say_nothing
    with _let_in(local):
        try:
            # Ray's C++ part crashes when it is left in the middle of connecting, and its own SIGTERM handler aborts.
            with interrupts_wait(), _muted(), _at_home():
                ray.init(
                    address=local.address,
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=True,
                )
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _at_home() -> Iterator[None]:
    """Ray puts the working folder before the paths of its processes; it may have another `baton`, or be gone."""
    before = os.open(".", os.O_PATH | os.O_DIRECTORY)
    os.chdir(import_root())
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Ray's C++ part says nothing while it starts, and nothing afterwards: its lines would go to the terminal."""
    name, terminal = "RAY_BACKEND_LOG_LEVEL", os.dup(2)
    before = os.environ.get(name)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    os.environ[name] = "fatal"
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _say_nothing(*words: Any, **how: Any) -> None:
    """Instead of Ray's paragraphs about processes that died, which it prints in every driver."""


@contextlib.contextmanager
def _let_in(local: LocalRay) -> Iterator[None]:
    """With our Ray's token, and on loopback with Ray's constant that the environment sets for its other processes."""
    if not local.folder:
        yield
        return
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    cluster = ray_constants.ENABLE_RAY_CLUSTER
    try:
        os.environ.update(local.access())
        _read_access()
        ray_constants.ENABLE_RAY_CLUSTER = not local.on_loopback
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = cluster
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)
        _read_access()


def _read_access() -> None:
    """Ray keeps what it once read of its environment: the mode and the token."""
    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def gcs_address() -> str:
    """Where the Ray that this process is connected to is found, as "host:port"."""
    return str(ray.get_runtime_context().gcs_address)


@dataclass(frozen=True, slots=True)
class Started:
    """Where the cluster answers: clients at `address`, workers at `worker_address`."""

    address: str
    worker_address: str
    workers: list[str]
    admin_address: str


def start_cluster(resolved: Resolved, tell: Progress, prefix: str = "", worker_host: str = "127.0.0.1") -> Started:
    """Start router and workers as detached actors and wait until every worker serves.

    `prefix` goes before actor names, so that several clusters share one Ray. `worker_host` is where the router listens
    for workers; empty: the address by which other nodes of the Ray know this one. Raises `ConfigError` with the reason
    when a process cannot start; what was started stays for `stop_cluster`.
    """
    node_address = ray.util.get_node_ip_address()
    keys = new_link_keys()
    plan = replace(resolved.router_config(worker_host or node_address), link_keys=keys.router)
    tell(ROUTER, "starting")
    # On the node of the command: its clients are here, and this node is not one the autoscaler takes away.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # A restarted router has to be found where the first one was, so a port that is left open is chosen here.
    given = plan.router
    plan = replace(
        plan,
        router=given.changed(
            port=given.port or free_port(given.host),
            admin_port=given.admin_port or free_port(given.admin_host),
        ),
        worker_port=plan.worker_port or free_port(plan.worker_host),
    )
    router = RouterActor.options(  # type: ignore[attr-defined]
        name=prefix + ROUTER, lifetime="detached", scheduling_strategy=here
    ).remote(plan, keys.worker, prefix)
    addresses = ray.get(router.start.remote())
    if isinstance(addresses, str):
        raise ConfigError(addresses)
    public = reachable(addresses.public, node_address)
    tell(ROUTER, f"serving gRPC on {public}, administration on {addresses.admin}")
    reserve_groups(resolved, prefix)
    start_workers(resolved, resolved.roles, addresses.worker, tell, prefix)
    return Started(public, addresses.worker, [name for name, _ in resolved.roles], addresses.admin)


def start_workers(
    resolved: Resolved, workers: list[tuple[str, str]], worker_address: str, tell: Progress, prefix: str = ""
) -> None:
    """Start workers, given as (name, role), and wait until each serves, however long its node takes to come.

    Raises `ConfigError` when one cannot start; the others stay for `stop_workers`.
    """
    actors = {}
    keys = ray.get(_router(prefix).worker_keys.remote())
    for name, role in workers:
        plan = replace(resolved.worker_config(name, role, worker_address), link_keys=keys)
        try:
            options = actor_options(resolved, name, role, prefix)
            actors[name] = WorkerActor.options(  # type: ignore[attr-defined]
                name=prefix + name, lifetime="detached", **options
            ).remote(plan)
        except ValueError as refusal:
            raise ConfigError(f"Ray refuses to place {name}: {refusal}") from None
        words = demand(resolved.config, role).words
        tell(name, f"waiting for a node with {words}" if words else "starting")
    _wait_loaded(actors, tell)


def _wait_loaded(actors: dict[str, Any], tell: Progress) -> None:
    killed, began_s = oom_kills(), time.time() - CLOCK_S
    waiting = {actor.wait_loaded.remote(): name for name, actor in actors.items()}
    # One question at a time: an actor without a node yet would find all of them in its queue when it starts.
    asked = {actor.stage.remote(): name for name, actor in actors.items()}
    while waiting:
        for reference in ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else ():
            name = asked.pop(reference)
            if name in waiting.values():
                with contextlib.suppress(ray.exceptions.RayError):  # told below, by `wait_loaded`
                    tell(name, ray.get(reference))
                    asked[actors[name].stage.remote()] = name
        done, _ = ray.wait(list(waiting), timeout=POLL_S)
        for reference in done:
            name = waiting.pop(reference)
            try:
                error = ray.get(reference)
            except ray.exceptions.RayError as death:
                logs = Path(worker.global_worker.node.get_logs_dir_path())
                log = log_of(name, logs, began_s)
                error = why_ended(log, oom_kills() > killed, machine_facts().free.words, str(death))
            if error:
                raise ConfigError(f"{name} could not start: {error}")
            tell(name, "serving")


def live_actors(prefix: str = "") -> list[str]:
    """Names of router and workers whose actors live, those that wait for a node included."""
    return sorted(name.removeprefix(prefix) for name in _actor_names(prefix))


def live_workers(prefix: str = "") -> set[str]:
    """Names of the workers whose actors live, those that wait for a node included."""
    return {*live_actors(prefix)} - {ROUTER}


def stop_workers(resolved: Resolved, names: list[str], prefix: str = "", timeout_s: float = 10.0) -> None:
    """End workers, each with a goodbye to the router; a place in a group is given back with the group's last worker."""
    _stop([prefix + name for name in names], timeout_s)
    release_empty_groups(resolved, prefix, live_workers(prefix) - set(names))


def stop_cluster(prefix: str = "", timeout_s: float = MAX_STOP_S) -> list[str]:
    """End every actor of the cluster within about `timeout_s`, and give back its places; returns their names.

    The router goes first, which lets streams end for a while.
    """
    deadline = time.monotonic() + timeout_s
    names = sorted(_actor_names(prefix), key=lambda name: (name != prefix + ROUTER, name))
    _stop(names[:1], timeout_s - min(WORKERS_S, timeout_s / 2))
    _stop(names[1:], max(0.0, deadline - time.monotonic()))
    release_groups(prefix)
    return names


def _actor_names(prefix: str) -> list[str]:
    return [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix)
    ]


def _stop(names: list[str], timeout_s: float) -> None:
    """Kill actors; those that run may say goodbye first. One that waits for a node would not hear of it."""
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
