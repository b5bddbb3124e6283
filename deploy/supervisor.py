"""A small process that `baton up` leaves behind: it restarts the cluster when the cluster's Ray has died.

It reads a few files of /proc every half second and imports nothing large; each attempt to restart the cluster is
another process. It ends when its cluster is being ended, or when the note is gone or belongs to another cluster.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from baton.deploy.attempt import Attempt
from baton.deploy.look import Supervised, supervised, write_supervised
from baton.deploy.processes import PYTHON, python_environment, this_process
from baton.deploy.recovery import Recovery, Seen, step
from baton.deploy.running import RunningCluster, running_cluster
from baton.logs import log, set_up

POLL_S = 0.5
LOG_BYTES = 1 << 20
_FATE = re.compile(r"(\w+) failed and raylet fate-shares")


class Supervisor:
    """Watches the cluster noted in a folder. Steps that fail for lack of memory or disk are retried."""

    def __init__(self, folder: Path, cluster_id: str) -> None:
        self._folder, self._id = folder, cluster_id
        self._state = Recovery(since_s=time.monotonic())
        self._written: Recovery | None = None
        self._process = this_process("supervisor")
        self._attempt: Attempt | None = None
        self._failure = ""  # Reason why no process could be started for an attempt.
        self._kept = RayFolder()

    def run(self) -> None:
        """Watch until the cluster is ended or given up."""
        try:
            while self.look_and_act():
                time.sleep(POLL_S)
        finally:
            if self._attempt is not None:
                self._attempt.end()

    def look_and_act(self) -> bool:
        """Do one step; returns whether there is more to watch."""
        try:
            seen = self._see()
        except OSError:
            return True
        self._state, action = step(self._state, seen, time.monotonic())
        if self._state != self._written and self._state.phase != "ended":
            self._write()
        if action == "start":
            self._start()
        return action != "exit"

    def _start(self) -> None:
        command = [*PYTHON, "baton.deploy.restart", str(self._folder), self._id]
        try:
            self._attempt = Attempt(command, log_file(self._folder), time.monotonic())
        except OSError as error:
            self._failure = f"no process could be started: {error.strerror}"

    def _see(self) -> Seen:
        noted = running_cluster(self._folder)
        if noted is None or noted.id != self._id or noted.state == "ending":
            return Seen(noted=False)
        if self._failure:
            failure, self._failure = self._failure, ""
            return Seen(noted=True, attempt="failed", error=failure)
        if self._attempt is None:
            self._kept.keep(noted.ray_folder)
            return Seen(noted=True, dead=_dead(noted))
        outcome, reason = self._attempt.outcome(time.monotonic())
        if outcome != "running":
            self._attempt = None
        return Seen(noted=True, attempt=outcome, error=reason)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            log.info(str(self._state))
        with contextlib.suppress(OSError):
            write_supervised(Supervised(self._id, self._process, self._state), self._folder)
            self._written = self._state


class RayFolder:
    """Locks Ray's folder: systemd removes old files such as Ray's token from /tmp, except in locked folders."""

    def __init__(self) -> None:
        self._path, self._descriptor = "", -1

    def keep(self, path: str) -> None:
        """Lock this folder, and unlock the previous one."""
        if path == self._path:
            return
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._path = path
        with contextlib.suppress(OSError):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def start_supervisor(folder: Path, cluster_id: str) -> None:
    """Start a supervisor in its own session, without a fork, because this process may serve gRPC."""
    log = log_file(folder)
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.unlink()
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    os.posix_spawn(
        sys.executable,
        [*PYTHON, "baton.deploy.supervisor", str(folder.absolute()), cluster_id],
        python_environment(),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def end_supervisor(folder: Path | None, cluster_id: str, timeout_s: float) -> None:
    """End the supervisor of a cluster, and with it an attempt to restart the cluster."""
    state = supervised(folder)
    if state is not None and state.cluster_id == cluster_id:
        state.supervisor.end(timeout_s)


def log_file(folder: Path) -> Path:
    """The log of the supervisor and its attempts."""
    return folder / "supervisor.log"


def _dead(cluster: RunningCluster) -> tuple[str, ...]:
    """The vital processes that died; a raylet that ended because a helper of Ray died is named with the helper."""
    dead = [process.name for process in cluster.vital if not process.lives]
    if dead == ["raylet"] and (helper := _helper_that_took_the_raylet(cluster.ray_folder)):
        return (f"{helper} (a helper of Ray) and with it raylet",)
    return tuple(dead)


def _helper_that_took_the_raylet(ray_folder: str) -> str:
    with contextlib.suppress(OSError):  # Without the log, the helper is not named.
        for log in Path(ray_folder).glob("**/session_latest/logs/raylet.out"):
            if found := _FATE.findall(log.read_text(errors="replace")):
                return str(found[-1])
    return ""


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    set_up("supervisor")
    os.chdir("/")  # The folder where it was started may be removed or unmounted.
    Supervisor(Path(sys.argv[1]), sys.argv[2]).run()
