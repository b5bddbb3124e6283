"""Ray's own processes are killed: the supervisor restarts the cluster, or the commands report that it is dead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import baton
from baton.deploy.local_ray import LocalRay
from baton.deploy.look import look, supervised
from baton.deploy.running import RunningCluster, running_cluster
from baton.deploy.supervisor import end_supervisor, start_supervisor
from tests.live.commands import ROOT, baton_command, left_behind
from tests.waiting import until

pytestmark = pytest.mark.ray

BACK_WITHIN_S = 60.0
AGENT = "idle_agent.py"
PROMPT = "write : the old fox"


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A home with a serving cluster; afterwards the cluster must be gone."""
    before = {str(path) for path in Path("/tmp").glob("baton-ray-*")}
    variables = {**os.environ, "BATON_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    # In float32, recomputed tokens are the same.
    up = baton_command(variables, "up", "--port", "0", "--admin-port", "0", "--dtype", "float32")
    assert up.returncode == 0, up.stderr
    try:
        yield variables
    finally:
        down = baton_command(variables, "down")
    assert down.returncode == 0, down.stderr
    assert left_behind(before) == []


def _noted(tmp_path: Path) -> RunningCluster:
    cluster = running_cluster(tmp_path)
    assert cluster is not None
    return cluster


def _kill(cluster: RunningCluster, words: str) -> None:
    """Kill the process of this cluster's Ray whose program, options aside, contains these words."""
    for process in LocalRay(cluster.ray_address, cluster.ray_folder).processes():
        if words in " ".join(process.cmdline()[:4]):
            process.kill()
            process.wait(10)
            return
    raise AssertionError(f"no {words}")


@pytest.mark.slow
def test_the_cluster_restarts_at_its_addresses_and_a_stream_continues(
    environment: dict[str, str], tmp_path: Path
) -> None:
    first = _noted(tmp_path)
    options: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True, "temperature": 0.8, "seed": 5}
    with baton.Client(first.address) as client:
        expected = client.generate(PROMPT, **options).token_ids
        for victim, named in (
            ("/gcs_server", "gcs_server died"),
            ("/raylet/raylet", "raylet died"),
            (AGENT, "dashboard_agent (a helper of Ray) and with it raylet died"),
            ("ray::RuntimeEnvAgent", "runtime_env_agent (a helper of Ray) and with it raylet died"),
        ):
            before = _noted(tmp_path)
            stream = client.stream(PROMPT, **options)
            tokens = [next(stream) for _ in range(5)]
            _kill(before, victim)
            killed_s = time.monotonic()
            tokens += list(stream)
            assert [token.index for token in tokens] == list(range(400))
            assert [token.id for token in tokens] == expected
            until(partial(_came_back, tmp_path, before), BACK_WITHIN_S - (time.monotonic() - killed_s))
            assert client.generate(PROMPT, **{**options, "max_tokens": 20}).token_ids == expected[:20]
            assert named in baton_command(environment, "status").stderr
            _forget_deaths(tmp_path)
    last = _noted(tmp_path)
    assert (last.address, last.admin_address, last.workers) == (first.address, first.admin_address, first.workers)


def _forget_deaths(tmp_path: Path) -> None:
    """Replace the supervisor, since it pauses the longer the more often the cluster has died lately."""
    cluster_id = _noted(tmp_path).id
    end_supervisor(tmp_path, cluster_id, timeout_s=5.0)
    start_supervisor(tmp_path, cluster_id)
    until(lambda: (state := supervised(tmp_path)) is not None and state.supervisor.lives and not state.recovery.dead)


def _came_back(tmp_path: Path, before: RunningCluster) -> bool:
    """Whether a new Ray serves the cluster."""
    now = _noted(tmp_path)
    state = supervised(tmp_path)
    back = state is not None and state.recovery.phase == "watching"
    return back and now.ray_folder != before.ray_folder and look(now, tmp_path).kind == "serving"


@pytest.mark.slow
def test_a_dead_cluster_without_a_supervisor_is_named_and_ended_in_seconds(
    environment: dict[str, str], tmp_path: Path
) -> None:
    cluster, state = _noted(tmp_path), supervised(tmp_path)
    assert state is not None
    state.supervisor.signal(signal.SIGKILL)
    until(lambda: not state.supervisor.lives, 5)
    _kill(cluster, "/gcs_server")
    began_s = time.monotonic()
    assert look(cluster, tmp_path).why == "The cluster has died: its gcs_server ended."
    assert time.monotonic() - began_s < 2
    for command in (("status",), ("generate", "Hello"), ("scale", "--decode", "+1")):
        refused = baton_command(environment, *command)
        assert refused.returncode == 1
        assert "its gcs_server ended. `baton up` starts it again" in refused.stderr
    began_s = time.monotonic()
    down = baton_command(environment, "down")
    assert time.monotonic() - began_s < 20
    assert "its gcs_server ended. Ended " in down.stdout
    assert "Nothing was running" in baton_command(environment, "down").stdout
    up = baton_command(environment, "up", "--port", "0", "--admin-port", "0")
    assert up.returncode == 0, up.stderr
    _kill(_noted(tmp_path), "/raylet/raylet")
    assert baton_command(environment, "down").returncode == 0
