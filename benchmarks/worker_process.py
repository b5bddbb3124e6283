"""A worker in a process of its own, without Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping

from baton.config.plan import WorkerPlan
from baton.logs import set_up
from benchmarks.cables import enter


def work(plan: WorkerPlan, namespace: str = "", environment: Mapping[str, str] | None = None) -> None:
    """Serve until the router ends the worker or its process is killed.

    `namespace` names the network namespace to enter first, if any; `environment` is added to the process's own.
    """
    if namespace:
        enter(namespace)
    os.environ.update(environment or {})
    set_up(plan.name, plan.logging.level)
    from baton.worker.assembly import assemble

    assemble(plan, str(os.getpid()), "localhost", lambda stage: None).run()
