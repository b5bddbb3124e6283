"""Observes the condition of the noted cluster, in well under two seconds and without Ray."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from baton.deploy.condition import Condition, Facts, Reached, condition
from baton.deploy.processes import NotedProcess, boot
from baton.deploy.recovery import Recovery, words
from baton.deploy.running import RunningCluster, home, running_cluster
from baton.protocol.errors import NoWorkers

PROBE_S = 0.8  # Time limit of one connection; two are tried.


@dataclass(frozen=True, slots=True)
class Supervised:
    """A supervisor's state file: the cluster that it watches, its own process, and the state of the restart."""

    cluster_id: str
    supervisor: NotedProcess
    recovery: Recovery


def look(cluster: RunningCluster, folder: Path | None = None) -> Condition:
    """The noted cluster's condition now."""
    state = _of(cluster, folder)
    supervisor_lives = state is not None and state.supervisor.lives
    noted = [process for process in (*cluster.vital, cluster.changed_by) if process is not None]
    same_boot = all(process.boot == boot() for process in noted)
    dead = tuple(process.name for process in cluster.vital if not process.lives)
    settled = same_boot and not dead and cluster.state == "up"
    facts = Facts(
        same_boot=same_boot,
        dead=dead,
        ray=reached(cluster.ray_address) if settled else "answers",
        router=reached(cluster.admin_address) if settled else "answers",
        any_gateway=reached(client_address(cluster)) if settled else "answers",
        command_lives=cluster.ends_with is None or cluster.ends_with.lives,
        changer_lives=cluster.changed_by is not None and cluster.changed_by.lives,
        recovery=""
        if state is None or state.recovery.phase == "watching"
        else words(state.recovery, time.monotonic(), supervisor_lives),
        supervisor_lives=supervisor_lives,
    )
    return condition(cluster, facts)


def client_address(cluster: RunningCluster) -> str:
    """The address of a gateway that accepts connections now; the first gateway's if none does."""
    different = list(dict.fromkeys(cluster.gateway_addresses or (cluster.address,)))
    return next((address for address in different if reached(address) == "answers"), different[0])


def serving_cluster(folder: Path | None = None, *, clients: bool = False) -> RunningCluster | None:
    """The noted cluster, None without a note; raises `NoWorkers` with the reason when it does not serve.

    `clients`: it must serve clients, for which it needs a gateway; operators need its router alone.
    """
    cluster = running_cluster(folder)
    if cluster is None:
        return None
    seen = look(cluster, folder)
    if seen.kind == "dead":
        raise NoWorkers(f"{seen.why} `baton up` starts it again.")
    if seen.kind == "no gateway" and not clients:
        return cluster
    if seen.kind in ("no router", "no gateway"):
        raise NoWorkers(f"{seen.why} Ray restarts what died: try again in a few seconds, or use `baton down`.")
    if seen.kind != "serving":
        raise NoWorkers(f"{seen.why} Try again in a few seconds.")
    return cluster


def reached(address: str) -> Reached:
    """Whether a process accepts connections at "host:port"; an address of another form counts as answering."""
    host, _, port = address.rpartition(":")
    if not host or "://" in host or not port.isdigit():
        return "answers"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S):
            return "answers"
    except (ConnectionRefusedError, OverflowError, ValueError):  # ValueError: an invalid host name.
        return "refuses"
    except OSError:
        return "silent"


def supervised(folder: Path | None = None) -> Supervised | None:
    """The state that the supervisor in this folder wrote last; None without a valid file."""
    try:
        values = json.loads(recovery_file(folder).read_text())
        recovery = values["recovery"]
        return Supervised(
            values["cluster_id"],
            NotedProcess.from_json(values["supervisor"]),
            Recovery(**{**recovery, "dead": tuple(recovery["dead"])}),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_supervised(state: Supervised, folder: Path | None = None) -> None:
    """Replace the supervisor's state file, atomically."""
    path = recovery_file(folder)
    written = path.with_suffix(".new")
    written.write_text(json.dumps(asdict(state)))
    written.replace(path)


def recovery_file(folder: Path | None = None) -> Path:
    """The supervisor's state file: recovery.json beside the cluster's note."""
    return (folder or home()) / "recovery.json"


def history(folder: Path | None = None) -> str:
    """The last death and restart of the noted cluster's Ray; empty without one, or when its supervisor died over it."""
    cluster = running_cluster(folder)
    state = None if cluster is None else _of(cluster, folder)
    if state is None or not (state.supervisor.lives or state.recovery.phase == "watching"):
        return ""
    return words(state.recovery, time.monotonic())


def _of(cluster: RunningCluster, folder: Path | None) -> Supervised | None:
    """The state that this cluster's supervisor wrote last, if the machine has not been rebooted since."""
    state = supervised(folder)
    return state if state is not None and state.cluster_id == cluster.id and state.supervisor.boot == boot() else None
