"""How a Ray that Baton started is ended: with stand-ins for its processes, and a zombie."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from baton.deploy.local_ray import LocalRay
from baton.deploy.processes import noted_process, until_ended

RAYLET = """
trap 'kill -0 {gcs} && touch {unregistered}; exit' TERM
echo ready
while true; do sleep 0.01; done
"""
GCS = "echo ready; while true; do sleep 0.01; done"


def _stand_in(folder: Path, ray: LocalRay, name: str, script: str) -> subprocess.Popen[str]:
    """A shell with this name that runs `script` in a loop and belongs to the Ray."""
    program = folder / name
    program.symlink_to(shutil.which("bash") or "")
    environment = {**os.environ, "BATON_RAY_FOLDER": ray.folder}
    process = subprocess.Popen([program, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_raylet_may_unregister_before_the_gcs_server_is_killed(tmp_path: Path) -> None:
    ray = LocalRay("127.0.0.1:9", str(tmp_path / "ray"))
    unregistered = tmp_path / "unregistered"
    with (
        _stand_in(tmp_path, ray, "gcs_server", GCS) as gcs,
        _stand_in(tmp_path, ray, "raylet", RAYLET.format(gcs=gcs.pid, unregistered=unregistered)) as raylet,
    ):
        assert ray.stop() >= {gcs.pid, raylet.pid}
    assert unregistered.exists()
    assert gcs.returncode < 0


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_raylet_or_gcs_server_alone_is_killed(tmp_path: Path, name: str) -> None:
    ray = LocalRay("127.0.0.1:9", str(tmp_path / "ray"))
    unregistered = tmp_path / "unregistered"
    with _stand_in(tmp_path, ray, name, RAYLET.format(gcs=os.getpid(), unregistered=unregistered)) as process:
        assert ray.stop() >= {process.pid}
    assert process.returncode < 0
    assert not unregistered.exists()


def test_a_zombie_process_counts_as_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        running = noted_process("", process.pid)
        assert running is not None
        assert until_ended([running], timeout_s=0.0) == [running]
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert until_ended([running], timeout_s=0.0) == []
