"""A worker in a process of its own, without Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from baton.config.process_config import WorkerConfig
from baton.logs import set_up


def work(
    plan: WorkerConfig, first: Callable[[], None] | None = None, environment: Mapping[str, str] | None = None
) -> None:
    """Serve until the router ends the worker or its process is killed.

    `first` is called before anything else; `environment` is added to the process's own.
    """
    if first is not None:
        first()
    os.environ.update(environment or {})
    set_up(plan.name, plan.logging.level, log_format=plan.logging.format)
    from baton.harness.forked_rank import fork_rank
    from baton.worker.build import assemble

    assemble(plan, str(os.getpid()), "localhost", lambda stage: None, fork_rank).run()
