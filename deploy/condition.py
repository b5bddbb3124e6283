"""The condition of a noted cluster, decided from what was observed: pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from baton.deploy.running import RunningCluster

Kind = Literal["serving", "no router", "no gateway", "unreachable", "starting", "ending", "recovering", "dead"]
Reached = Literal["answers", "refuses", "silent"]  # Only a refusal proves that nothing listens: packets get lost.


@dataclass(frozen=True, slots=True)
class Facts:
    """What was observed of a noted cluster."""

    same_boot: bool = True  # The machine has not been rebooted since the note was made.
    dead: tuple[str, ...] = ()  # Names of the vital processes that have died.
    ray: Reached = "answers"
    router: Reached = "answers"
    any_gateway: Reached = "answers"
    changer_lives: bool = False  # The command that starts or ends the cluster is running.
    command_lives: bool = True  # The command that the cluster ends with is running; True where there is none.
    recovery: str = ""  # The supervisor's report on a restart: under way, or given up.
    supervisor_lives: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """The cluster's condition; `why` is a sentence for the operator, empty when the cluster serves."""

    kind: Kind
    why: str = ""


def condition(cluster: RunningCluster, facts: Facts) -> Condition:
    """The condition of a noted cluster. What is observed now outweighs the last report of a dead supervisor."""
    if facts.recovery and facts.supervisor_lives:
        return Condition("recovering", f"The cluster has died: {facts.recovery}.")
    if cluster.changed_by is not None and facts.changer_lives:
        who = f"{cluster.changed_by.name} (process {cluster.changed_by.pid})"
        return (
            Condition("ending", f"The cluster is being ended by {who}.")
            if cluster.state == "ending"
            else Condition("starting", f"The cluster is being started by {who}.")
        )
    if not facts.same_boot:
        return Condition("dead", "The cluster ended when the machine was rebooted.")
    if facts.recovery and (cluster.state != "up" or facts.dead):
        return Condition("dead", f"The cluster has died: {facts.recovery}.")
    if cluster.state != "up":
        interrupted = "start" if cluster.state == "starting" else "end"
        return Condition("dead", f"The command that should {interrupted} the cluster was killed.")
    if not facts.command_lives:
        return Condition("dead", "The command that owned the cluster was killed.")
    if facts.dead:
        return Condition("dead", f"The cluster has died: its {' and '.join(facts.dead)} ended.")
    if facts.ray == "refuses":
        return Condition("dead", f"The cluster has died: its Ray does not answer at {cluster.ray_address}.")
    if facts.ray == "silent":
        return Condition("unreachable", f"The cluster's Ray cannot be reached at {cluster.ray_address} now.")
    if facts.router != "answers":
        return Condition("no router", f"The cluster's router does not answer at {cluster.admin_address}.")
    if facts.any_gateway != "answers":
        return Condition("no gateway", f"The cluster's gateway does not answer at {cluster.address}.")
    return Condition("serving")
