"""Ends clusters: the noted one for `baton down`, one that failed to start, and the remains of killed commands."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from baton.config.ray_names import GATEWAY, ROUTER
from baton.deploy.condition import Condition
from baton.deploy.local_ray import LocalRay
from baton.deploy.look import look, reached, recovery_file
from baton.deploy.processes import PYTHON, python_environment, this_process
from baton.deploy.running import RunningCluster, home, remove_note, running_cluster, state_file, update_note
from baton.deploy.supervisor import end_supervisor
from baton.protocol.errors import ConfigError

Progress = Callable[[str, str], None]  # (process name, what it is doing)
STREAMS_S = 5.0  # Part of DOWN_S in which running streams may end; gateway.stop_grace_s can add to it.
DOWN_S = 20.0
_END_RAY_S = 8.0  # Part of DOWN_S kept for Ray's processes, some of which have to be killed.
KILL_S = 2.0  # Time for kills after the goodbyes.
_CONNECT_S = 4.0  # Time for a second attempt to reach the actors, without goodbyes.
_NOTED_WITHIN_S = 60.0  # A demo's folder that is older and has no note is left over from a demo that ended.


@dataclass(frozen=True, slots=True)
class Ended:
    """What `down` ended."""

    noted: bool  # Whether there was a cluster.
    actors: tuple[str, ...] = ()  # Names.
    processes: int = 0  # Number of processes, Ray's own included.
    died: str = ""  # For a cluster that was already dead: a sentence with the reason.

    @property
    def sentence(self) -> str:
        """What was ended, as a sentence for the operator."""
        if not self.noted:
            return "Nothing was running."
        if self.died:
            left = f"ended {_count(self.processes, 'process', 'processes')} that it left" if self.processes else ""
            return f"{self.died} {left.capitalize() or 'Nothing was running'}; its note is removed."
        gateways = {name for name in self.actors if name.startswith(f"{GATEWAY}-")}
        workers = _count(len(set(self.actors) - gateways - {ROUTER}), "worker")
        front = f", {_count(len(gateways), 'gateway')}" if gateways else ""
        router = f"{front} and the router" if ROUTER in self.actors else front
        processes = f" ({_count(self.processes, 'process', 'processes')} with Ray's own)" if self.processes else ""
        return f"Ended {workers}{router}{processes}."


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def down(folder: Path | None = None, only: str = "") -> Ended:
    """End the noted cluster, dead or alive, with its own Ray, and remove its note. A Ray of others keeps running.

    `only` is a cluster's id: no other cluster is ended. Takes at most `DOWN_S`, plus the part of gateway.stop_grace_s
    that exceeds `STREAMS_S`. Raises `ConfigError`, and leaves the note, when another command that changes the cluster
    cannot be ended, or when a Ray of others does not end the actors.
    """
    folder = folder or home()
    end_killed_demos(folder)
    started_s = time.monotonic()
    cluster = running_cluster(folder)
    if cluster is None or only not in ("", cluster.id):
        return Ended(noted=False)
    end_supervisor(folder, cluster.id, timeout_s=1.0)
    taken = _take(cluster.id, folder)
    if taken is None:
        return Ended(True, died="Another command ended the cluster.")
    cluster, seen = taken
    ray = LocalRay(cluster.ray_address, cluster.ray_folder)
    processes = {process.pid for process in ray.processes()} if ray.folder else set()
    actors: tuple[str, ...] = ()
    if seen.kind in ("serving", "no router", "no gateway") or not cluster.ray_folder:
        actors = stop_actors(cluster, started_s + DOWN_S - _END_RAY_S + _grace_s(cluster))
    if ray.folder:
        processes |= ray.stop()
    recovery_file(folder).unlink(missing_ok=True)
    remove_note(cluster.id, folder)
    return Ended(True, actors, len(processes), seen.why if seen.kind == "dead" else "")


def _take(cluster_id: str, folder: Path) -> tuple[RunningCluster, Condition] | None:
    """Note that this command ends the cluster; returns it and its condition before, None if it has ended already."""
    refusal = ""
    for _ in range(3):
        cluster = running_cluster(folder)
        if cluster is None or cluster.id != cluster_id:
            return None
        if _let_change_end(cluster):
            continue
        seen = look(cluster, folder)
        try:
            update_note(replace(cluster, state="ending", changed_by=this_process("baton down")), folder)
        except ConfigError as error:  # Another command began to change the cluster after the note was read.
            refusal = error.message
        else:
            return cluster, seen
    raise ConfigError(refusal or "The command that is changing the cluster does not end: see `baton status`.")


def _let_change_end(cluster: RunningCluster) -> bool:
    """Whether another command was changing the cluster: a start is interrupted, `baton down` first gets time to end."""
    changer = cluster.changed_by
    if changer is None or not changer.lives or changer.pid == os.getpid():
        return False
    deadline = time.monotonic() + DOWN_S / 4
    while cluster.state == "ending" and changer.lives and time.monotonic() < deadline:
        time.sleep(0.05)
    changer.end(timeout_s=DOWN_S / 4)
    return True


def _grace_s(cluster: RunningCluster) -> float:
    """The part of gateway.stop_grace_s that exceeds `STREAMS_S`."""
    try:
        return max(0.0, float(cluster.resolved["config"]["gateway"]["stop_grace_s"]) - STREAMS_S)
    except (KeyError, TypeError, ValueError):
        return 0.0


def stop_actors(cluster: RunningCluster, deadline_s: float) -> tuple[str, ...]:
    """End gateways, router and workers, which may send goodbyes until `deadline_s`; returns their names.

    A subprocess connects to the Ray. If it hangs, it is killed, and on a Ray of others the actors are killed without
    goodbyes; actors on our own Ray end with its processes. Raises `ConfigError` when the kill fails too.
    """
    reach = reached(cluster.ray_address)
    if reach == "refuses" or (reach == "silent" and cluster.ray_folder):
        return ()
    ended = None
    if reach == "answers":
        ended = _stop_actors(cluster, deadline_s, max(0.0, deadline_s - time.monotonic()))
        if ended is None and cluster.ray_folder:
            gateways = (f"{GATEWAY}-{index}" for index in range(len(cluster.gateway_addresses)))
            return (ROUTER, *gateways, *cluster.workers)
        if ended is None:
            ended = _stop_actors(cluster, 0.0, _CONNECT_S)
    if ended is None:
        raise ConfigError(
            f"The actors of the cluster could not be ended on the Ray at {cluster.ray_address}: `baton down` tries it "
            "again. If that Ray no longer exists, remove cluster.json from $BATON_HOME (~/.baton)."
        )
    return ended


def _stop_actors(cluster: RunningCluster, goodbye_until_s: float, timeout_s: float) -> tuple[str, ...] | None:
    """The names of the actors that a subprocess ended; None when it failed, or exceeded its time and was killed."""
    words = (cluster.ray_address, cluster.ray_folder, cluster.prefix, str(goodbye_until_s))
    with subprocess.Popen(
        [*PYTHON, "baton.deploy.stop_actors", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=python_environment(),
        start_new_session=True,
    ) as stop:
        try:
            said, _ = stop.communicate(timeout=timeout_s + KILL_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            stop.kill()
    return tuple(json.loads(said)) if stop.returncode == 0 else None


def end_started(cluster: RunningCluster) -> None:
    """End the started parts of a cluster that failed to start; there are no streams to wait for.

    Raises `ConfigError` when a Ray of others does not end the actors.
    """
    if cluster.ray_folder:
        LocalRay(cluster.ray_address, cluster.ray_folder).stop()
    else:
        stop_actors(cluster, time.monotonic() + DOWN_S - _END_RAY_S)


def clear(folder: Path, report: Progress) -> None:
    """Remove the remains of a dead cluster and of killed demos; raises `ConfigError` when a cluster is running."""
    end_killed_demos(folder)
    cluster = running_cluster(folder)
    if cluster is None:
        return
    seen = look(cluster, folder)
    if seen.kind == "serving":
        raise ConfigError("A cluster is already running: see `baton status`, or end it with `baton down`.")
    if seen.kind in ("no router", "no gateway"):
        raise ConfigError(f"{seen.why} Ray restarts what died; if it does not return, use `baton down`.")
    if seen.kind != "dead":
        raise ConfigError(f"{seen.why} Wait for it, or use `baton down`.")
    report("before", f"done: {down(folder, only=cluster.id).sentence}")


def end_killed_demos(folder: Path) -> None:
    """End the clusters of demos whose command was killed, and remove their folders."""
    for demo in folder.glob("demo-*"):
        cluster = running_cluster(demo)
        if cluster is None:
            if not state_file(demo).exists() and _age_s(demo) > _NOTED_WITHIN_S:
                shutil.rmtree(demo, ignore_errors=True)
            continue
        if cluster.ends_with is None or cluster.ends_with.lives:
            continue
        with contextlib.suppress(ConfigError):  # The next command tries again.
            down(demo, only=cluster.id)
            shutil.rmtree(demo, ignore_errors=True)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
