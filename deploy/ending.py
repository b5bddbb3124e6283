"""How clusters end: the noted one by `down`, one that could not start, and what killed commands left behind."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.errors import ConfigError
from cluster.ray_names import ROUTER
from deploy.local_ray import LocalRay
from deploy.look import answers, look, recovery_file
from deploy.processes import python_environment, this_process
from deploy.running import RunningCluster, home, remove_note, running_cluster, update_note
from deploy.supervisor import end_supervisor

Tell = Callable[[str, str], None]
STREAMS_S = 5.0  # how long running streams may take to end within DOWN_S; router.stop_grace_s may give them more
DOWN_S = 20.0
_END_RAY_S = 8.0  # of these, for processes that do not end when asked


@dataclass(frozen=True, slots=True)
class Ended:
    """What `down` ended: actors by name, and processes by number, with Ray's own."""

    noted: bool
    actors: tuple[str, ...] = ()
    processes: int = 0
    died: str = ""  # a sentence, when the cluster did not live any more

    @property
    def sentence(self) -> str:
        """For the operator."""
        if not self.noted:
            return "Nothing was running."
        if self.died:
            left = f"ended {_count(self.processes, 'process', 'processes')} that it left" if self.processes else ""
            return f"{self.died} {left.capitalize() or 'Nothing was running'}; its note is removed."
        workers = _count(len(set(self.actors) - {ROUTER}), "worker")
        router = " and the router" if ROUTER in self.actors else ""
        processes = f" ({_count(self.processes, 'process', 'processes')} with Ray's own)" if self.processes else ""
        return f"Ended {workers}{router}{processes}."


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def down(folder: Path | None = None) -> Ended:
    """End the noted cluster, dead or alive, and its Ray, and remove its note; a Ray of others keeps running.

    Takes at most `DOWN_S`, and what router.stop_grace_s gives to running streams beyond `STREAMS_S`.
    """
    folder = folder or home()
    started_s = time.monotonic()
    end_killed_demos(folder)
    cluster = running_cluster(folder)
    if cluster is None:
        return Ended(noted=False)
    end_supervisor(folder, cluster.id, timeout_s=1.0)
    _let_change_end(cluster, folder)
    cluster = running_cluster(folder) or cluster
    seen = look(cluster, folder)
    with contextlib.suppress(ConfigError):  # ended by the command that was changing it
        update_note(replace(cluster, state="ending", changed_by=this_process("baton down")), folder)
    ray = LocalRay(cluster.ray_address, cluster.ray_folder)
    processes = {process.pid for process in ray.processes()} if ray.folder else set()
    actors: tuple[str, ...] = ()
    if seen.kind in ("serving", "no router") or not cluster.ray_folder:
        actors = stop_actors(cluster, started_s + DOWN_S - _END_RAY_S + _grace_s(cluster) - time.monotonic())
    if ray.folder:
        processes |= ray.stop()
    recovery_file(folder).unlink(missing_ok=True)
    remove_note(cluster.id, folder)
    return Ended(True, actors, len(processes), seen.why if seen.kind == "dead" else "")


def _let_change_end(cluster: RunningCluster, folder: Path) -> None:
    """A start is interrupted; an end that another command is at may come to its own end."""
    changer = cluster.changed_by
    if changer is None:
        return
    deadline = time.monotonic() + DOWN_S / 4
    while cluster.state == "ending" and changer.lives and time.monotonic() < deadline:
        time.sleep(0.05)
    changer.end(timeout_s=DOWN_S / 4)


def _grace_s(cluster: RunningCluster) -> float:
    """What the operator wants running streams to have beyond STREAMS_S."""
    try:
        return max(0.0, float(cluster.resolved["config"]["router"]["stop_grace_s"]) - STREAMS_S)
    except (KeyError, TypeError, ValueError):
        return 0.0


def stop_actors(cluster: RunningCluster, timeout_s: float) -> tuple[str, ...]:
    """Have router and workers say goodbye; returns the names of those that lived.

    A process of its own connects to the Ray: where that hangs, it is ended.
    """
    if not answers(cluster.ray_address):
        return ()
    command = [sys.executable, "-m", "deploy.stop_actors", cluster.ray_address, cluster.ray_folder, cluster.prefix]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=python_environment(),
        start_new_session=True,
    ) as stop:
        try:
            said, _ = stop.communicate(timeout=max(0.1, timeout_s))
        except subprocess.TimeoutExpired as late:
            said = late.stdout or b""
        finally:
            stop.kill()
    names = said.decode().splitlines()
    return tuple(json.loads(names[0])) if names else ()


def end_started(cluster: RunningCluster) -> None:
    """End what this process started of a cluster that could not start; there are no streams to wait for."""
    if cluster.ray_folder:
        LocalRay(cluster.ray_address, cluster.ray_folder).stop()
    else:
        stop_actors(cluster, DOWN_S - _END_RAY_S)


def clear(folder: Path, tell: Tell) -> None:
    """End what is left of a noted cluster that died, and of killed demos; raises `ConfigError` when a cluster lives."""
    end_killed_demos(folder)
    cluster = running_cluster(folder)
    if cluster is None:
        return
    seen = look(cluster, folder)
    if seen.kind == "serving":
        raise ConfigError("A cluster is up already: see `baton status`, or end it with `baton down`.")
    if seen.kind == "no router":
        raise ConfigError(f"{seen.why} Ray starts a router that died again; if it does not come, use `baton down`.")
    if seen.kind != "dead":
        raise ConfigError(f"{seen.why} Wait for it, or use `baton down`.")
    tell("before", f"done: {down(folder).sentence}")


def end_killed_demos(folder: Path) -> None:
    """End the clusters of demos whose command was killed."""
    for demo in folder.glob("demo-*"):
        cluster = running_cluster(demo)
        if cluster is None or cluster.ends_with is None or cluster.ends_with.lives:
            continue
        down(demo)
        shutil.rmtree(demo, ignore_errors=True)
