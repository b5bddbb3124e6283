"""Processes that start at once: forked from a process that has imported torch and a worker's modules.

That process is `multiprocessing`'s fork server. It has opened no CUDA device, NIXL agent, ZeroMQ socket or gRPC
channel, none of which outlives a fork. Workers of a deployed cluster are no part of this: Ray starts their processes.
"""

from __future__ import annotations

import multiprocessing as mp
import os
from collections.abc import Callable, Mapping
from typing import Any

IMPORTED = "baton.worker.build"


def forked(target: Callable[..., None], *arguments: Any, name: str | None = None) -> Any:
    """A daemon process, not yet started, that calls `target(*arguments)`: both must pickle.

    It has the environment that this process has now, whenever the fork server was started.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([IMPORTED])
    return context.Process(target=_call, args=(dict(os.environ), target, arguments), name=name, daemon=True)


def _call(environment: Mapping[str, str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)
