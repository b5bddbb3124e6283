"""Connects this process to a Ray."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import _raylet
from ray._private import ray_constants, worker

from baton.config.ray_names import NAMESPACE
from baton.deploy.interrupts import interrupts_wait
from baton.deploy.local_ray import LocalRay
from baton.deploy.look import reached
from baton.deploy.processes import import_root
from baton.protocol.errors import ConfigError


@contextlib.contextmanager
def connected(local: LocalRay) -> Iterator[None]:
    """Connect this process to a Ray as a driver that prints nothing and keeps its signal handlers.

    Raises `ConfigError` when the Ray does not answer.
    """
    if reached(local.address) != "answers":
        raise ConfigError(f"Ray does not answer at {local.address}: start it again, or name another in $RAY_ADDRESS.")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    worker.print_to_stdstream = _print_nothing
    with _authenticated(local):
        try:
            # Ray's C++ part crashes when a signal interrupts connecting, and Ray's own SIGTERM handler aborts.
            with interrupts_wait(), _ray_log_off(), _in_import_root():
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
def _in_import_root() -> Iterator[None]:
    """Change to the import root: Ray's processes search the driver's working folder first, which may have another
    `baton` in it, or no longer exist.
    """
    before = os.open(".", os.O_PATH | os.O_DIRECTORY)
    os.chdir(import_root())
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


@contextlib.contextmanager
def _ray_log_off() -> Iterator[None]:
    """Keep the log lines of Ray's C++ part off the terminal, during the block and afterwards."""
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


def _print_nothing(*words: Any, **how: Any) -> None:
    """Replaces the printing of Ray's messages about dead processes, which appear in every driver."""


@contextlib.contextmanager
def _authenticated(local: LocalRay) -> Iterator[None]:
    """Present our Ray's token, and match Ray's loopback setting, which its processes read from their environment."""
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
    """Make Ray read the mode and the token from the environment again: it caches both."""
    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def gcs_address() -> str:
    """The GCS address of the Ray that this process is connected to, as "host:port"."""
    return str(ray.get_runtime_context().gcs_address)
