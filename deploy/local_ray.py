"""A Ray head on this machine that belongs to Baton: a later command finds it, and stops it completely.

`ray stop` ends every Ray on a machine, including those of others. Ours is identified by its folder, which each of its
processes has in its environment. It listens on loopback only, unless it is given another address, and answers only
callers with the token in its folder, which other users of the machine cannot open.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from baton.config.ray_names import RAY_FOLDER
from baton.deploy.processes import NotedProcess, import_root, noted_process, until_ended
from baton.protocol.address import bare_host, is_loopback, join, split
from baton.protocol.errors import ConfigError

START_TIMEOUT_S = 90.0
_INTERRUPTS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_GCS = "gcs_server"
_VITAL = (_GCS, "raylet")  # The Ray is dead when either of them has died.
# Runs `ray` after unblocking the signals that were blocked while it was started. A preexec_fn could do that, but it
# would fork this process, and gRPC sometimes aborts in a forked process.
_RAY = """
import runpy, signal
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
runpy.run_module("ray.scripts.scripts", run_name="__main__", alter_sys=True)
"""
_QUIET = {
    "RAY_enable_worker_prestart": "0",  # No idle Python processes.
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_START_HOOK": "baton.deploy.ray_start.without_extras",
    "RAY_worker_niceness": "0",  # at Ray's own 15, Baton's processes wait for every other one of the machine
}
# Unless this is "0", Ray replaces a loopback address by the machine's own and then listens on every interface.
_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@dataclass(frozen=True, slots=True)
class LocalRay:
    """A running Ray head: its address, and the folder that identifies its processes, empty for a Ray of others."""

    address: str
    folder: str

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach it; False for a Ray of others, of which that is unknown."""
        return bool(self.folder) and is_loopback(split(self.address)[0])

    def access(self) -> dict[str, str]:
        """Environment variables with which a process authenticates; none for a Ray of others."""
        if not self.folder:
            return {}
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(Path(self.folder) / "token")}

    def environment(self) -> dict[str, str]:
        """The environment of this Ray's processes: actors can import Baton, log little and authenticate."""
        path = os.pathsep.join([str(import_root()), *filter(None, [os.environ.get("PYTHONPATH")])])
        # A token in this variable would take precedence over the file.
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
        near = {"UCX_NET_DEVICES": "lo"} if self.on_loopback and "UCX_TLS" not in inherited else {}
        cluster = {_CLUSTER: "0" if self.on_loopback else "1"}
        return {**near, **inherited, **_QUIET, **cluster, **self.access(), RAY_FOLDER: self.folder, "PYTHONPATH": path}

    def processes(self) -> list[psutil.Process]:
        """Every live process of this Ray, workers and orphans included."""
        found = {
            process.pid: process
            for process in psutil.process_iter(["environ"])
            if (process.info["environ"] or {}).get(RAY_FOLDER) == self.folder
        }
        for process in list(found.values()):
            found.update((child.pid, child) for child in _children(process))
        found.pop(os.getpid(), None)
        return list(found.values())

    def vital(self) -> tuple[NotedProcess, ...]:
        """The processes without which this Ray is dead; raises `ConfigError` when one is missing."""
        found = {process.name: process for process in self._noted()}
        vital = tuple(found[name] for name in _VITAL if name in found)
        if len(vital) < len(_VITAL):
            raise ConfigError(f"Ray's processes died while it started: see the logs in {self.folder}.")
        return vital

    def stop(self) -> set[int]:
        """End every process, first with SIGTERM and then with SIGKILL, and remove the folder; returns the pids.

        A raylet that ends reports it to the gcs_server, and hangs without one, so gcs_server ends last.
        """
        ended: set[int] = set()
        for attempt in range(5):
            processes = self._noted()
            if not processes:
                break
            others = [process for process in processes if process.name != _GCS]
            gently = attempt == 0 and 0 < len(others) < len(processes)
            ending = others if gently else processes
            for process in ending:
                process.signal(signal.SIGTERM if gently else signal.SIGKILL)
            until_ended(ending, timeout_s=2.0)
            ended.update(process.pid for process in ending)
        shutil.rmtree(self.folder, ignore_errors=True)
        return ended

    def _noted(self) -> list[NotedProcess]:
        """Every live process of this Ray, with its program's name."""
        noted = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                noted.append(noted_process(process.name(), process.pid))
        return [process for process in noted if process is not None]


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def planned_ray(port: int = 0, host: str = "") -> LocalRay:
    """Address and folder of a Ray to be started, so that they can be noted first; `port` 0 is any free one."""
    host = host or loopback()
    # The folder's name is short: the paths of Unix sockets inside it may have at most 107 characters.
    return LocalRay(join(host, port or free_port(host)), f"/tmp/baton-ray-{secrets.token_hex(4)}")


def start_local_ray(
    object_store_bytes: int = 100 << 20,
    port: int = 0,
    options: Sequence[str] = (),
    host: str = "",
    planned: LocalRay | None = None,
) -> LocalRay:
    """Start a Ray head on this machine; raises `ConfigError` with Ray's output when it fails.

    `host` is an address of this machine, by default loopback, where only this machine reaches it; with another address
    it listens on every interface. `port` 0 is any free one; `options` are passed to `ray start`; `planned`, if given,
    replaces `host` and `port`. On an error or an interrupt, every started process is ended.
    """
    ray = planned or planned_ray(port, host)
    try:
        Path(ray.folder).mkdir(mode=0o700)
        _write_token(ray)
        _start(ray, object_store_bytes, options)
    except BaseException:
        ray.stop()
        raise
    return ray


def _write_token(ray: LocalRay) -> None:
    with open(ray.access()["RAY_AUTH_TOKEN_PATH"], "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(secrets.token_hex(32))


def _start(ray: LocalRay, object_store_bytes: int, options: Sequence[str]) -> None:
    host, port = split(ray.address)
    command = [
        *(sys.executable, "-P", "-c", _RAY, "start", "--head"),
        # A folder inside ours, because Ray makes its own readable for every user.
        *(f"--node-ip-address={host}", f"--port={port}", f"--temp-dir={ray.folder}/ray"),
        *("--include-dashboard=false", "--disable-usage-stats", "--include-log-monitor=false"),
        *(f"--object-store-memory={object_store_bytes}", *options),
    ]
    log = Path(ray.folder) / "start.log"
    with log.open("wb") as output:
        # Interrupts are blocked until the child can be found; its own session shields it from the terminal's Ctrl-C.
        signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        try:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=ray.environment(),
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
        try:
            code = process.wait(timeout=START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ConfigError(f"Ray did not start within {START_TIMEOUT_S:.0f} s.") from None
    if code != 0:
        words = log.read_text(errors="replace").strip().splitlines()[-5:]
        raise ConfigError("Ray did not start: " + " ".join(words))


def loopback() -> str:
    """The loopback address of this machine: IPv4's, or IPv6's where there is no IPv4."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError:
            return "::1"
    return "127.0.0.1"


def free_port(host: str = "") -> int:
    """A TCP port on which nothing listens now, at an address of this machine (default: loopback)."""
    family, kind, _, _, address = socket.getaddrinfo(bare_host(host) or loopback(), 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.bind(address)
        return int(probe.getsockname()[1])
