"""A small process that `baton up` leaves behind: it starts the cluster again when its Ray has died.

It reads a few files of /proc each half second and imports nothing large; an attempt to start the cluster is another
process. It ends when the note of its cluster is gone, being ended, or another cluster's.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from deploy.look import Supervised, supervised, write_supervised
from deploy.processes import python_environment, this_process
from deploy.recovery import Recovery, Seen, step
from deploy.running import RunningCluster, running_cluster

POLL_S = 0.5
LOG_BYTES = 1 << 20
_FATE = re.compile(r"(\w+) failed and raylet fate-shares")


class Supervisor:
    """Watches the cluster noted in a folder."""

    def __init__(self, folder: Path, cluster_id: str) -> None:
        self._folder, self._id = folder, cluster_id
        self._state = Recovery(since_s=time.monotonic())
        self._process = this_process("supervisor")
        self._attempt: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Until the cluster is ended, or given up."""
        try:
            self._write()
            while self._step():
                time.sleep(POLL_S)
        finally:
            if self._attempt is not None and self._attempt.poll() is None:
                self._attempt.terminate()
                self._attempt.wait()

    def _step(self) -> bool:
        before = self._state
        self._state, action = step(before, self._see(), time.monotonic())
        if self._state != before and self._state.phase != "ended":
            self._write()
        if action == "start":
            self._attempt = subprocess.Popen([sys.executable, "-m", "deploy.start_again", str(self._folder), self._id])
        return action != "exit"

    def _see(self) -> Seen:
        noted = running_cluster(self._folder)
        if noted is None or noted.id != self._id or noted.state == "ending":
            return Seen(noted=False)
        if self._attempt is None:
            return Seen(noted=True, dead=_dead(noted))
        code = self._attempt.poll()
        if code is None:
            return Seen(noted=True, attempt="running")
        self._attempt = None
        return Seen(noted=True, attempt="failed" if code else "done", error=_last_line(self._folder) if code else "")

    def _write(self) -> None:
        write_supervised(Supervised(self._id, self._process, self._state), self._folder)
        print(f"{time.strftime('%F %T')} {self._state}", file=sys.stderr, flush=True)


def start_supervisor(folder: Path, cluster_id: str) -> None:
    """Start one in a session of its own. Nothing is forked here: this process may serve gRPC."""
    log = log_file(folder)
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.unlink()
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "deploy.supervisor", str(folder), cluster_id],
        python_environment(),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def end_supervisor(folder: Path | None, cluster_id: str, timeout_s: float) -> None:
    """End the supervisor of a cluster; the attempt that it may be running ends with it."""
    state = supervised(folder)
    if state is not None and state.cluster_id == cluster_id:
        state.supervisor.end(timeout_s)


def log_file(folder: Path) -> Path:
    """What the supervisor and its attempts print."""
    return folder / "supervisor.log"


def _dead(cluster: RunningCluster) -> tuple[str, ...]:
    """Which vital processes died; a raylet that followed a helper is named with it."""
    dead = [process.name for process in cluster.vital if not process.lives]
    if dead == ["raylet"] and (helper := _helper_that_took_the_raylet(cluster.ray_folder)):
        return (f"{helper} (a helper of Ray) and with it raylet",)
    return tuple(dead)


def _helper_that_took_the_raylet(ray_folder: str) -> str:
    for log in Path(ray_folder).glob("**/session_latest/logs/raylet.out"):
        found = _FATE.findall(log.read_text(errors="replace"))
        if found:
            return str(found[-1])
    return ""


def _last_line(folder: Path) -> str:
    lines = log_file(folder).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    Supervisor(Path(sys.argv[1]), sys.argv[2]).run()
