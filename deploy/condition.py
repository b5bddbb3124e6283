"""Whether a noted cluster lives, decided from what was looked at: pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from baton.deploy.running import RunningCluster

Kind = Literal["serving", "no router", "unreachable", "starting", "ending", "recovering", "dead"]
Reached = Literal["answers", "refuses", "silent"]  # only a refusal says that nothing listens: a packet may be lost


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen of a noted cluster."""

    same_boot: bool = True  # of the machine, since the note was made
    dead: tuple[str, ...] = ()  # names of vital processes that do not live
    ray: Reached = "answers"
    router: Reached = "answers"
    changer_lives: bool = False
    command_lives: bool = True  # with which the cluster is to end
    recovery: str = ""  # what the supervisor says that brings the cluster back, or gave it up
    supervisor_lives: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """How it is with the cluster; `why` is a sentence for the operator, empty when it serves."""

    kind: Kind
    why: str = ""


def condition(cluster: RunningCluster, facts: Facts) -> Condition:
    """How it is with a noted cluster. What can be seen counts more than the last words of a dead supervisor."""
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
        return Condition("dead", "The cluster ended when the machine was started again.")
    if facts.recovery and (cluster.state != "up" or facts.dead):
        return Condition("dead", f"The cluster has died: {facts.recovery}.")
    if cluster.state != "up":
        interrupted = "start" if cluster.state == "starting" else "end"
        return Condition("dead", f"The command that was to {interrupted} the cluster was killed.")
    if not facts.command_lives:
        return Condition("dead", "The command that was to end the cluster was killed.")
    if facts.dead:
        return Condition("dead", f"The cluster has died: its {' and '.join(facts.dead)} ended.")
    if facts.ray == "refuses":
        return Condition("dead", f"The cluster has died: its Ray does not answer at {cluster.ray_address}.")
    if facts.ray == "silent":
        return Condition("unreachable", f"The cluster's Ray cannot be reached at {cluster.ray_address} now.")
    if facts.router != "answers":
        return Condition("no router", f"The cluster's router does not answer at {cluster.address}.")
    return Condition("serving")
