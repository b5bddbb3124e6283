"""Ending a cluster on a Ray that Baton did not start: actors and placement groups, including pending ones."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private.services import node_ip_address_from_perspective

from baton.deploy.local_ray import LocalRay, start_local_ray
from tests.cli.commands import BATON
from tests.live.commands import ROOT, baton_command

pytestmark = pytest.mark.ray

GOODBYE_S = 9.0  # less than the time that actors are given to end
CONFIG = """
[gateway]
port = 0
http_port = 0
[router]
admin_port = 0
[placement]
strategy = "pack"
[placement.prefill]
resources = { not_there = 1 }
[placement.decode]
resources = { not_there = 1 }
"""
LEFT = """
import sys
import ray
from ray.util.placement_group import placement_group_table
from baton.deploy.local_ray import LocalRay
from baton.deploy.ray_connection import connected

with connected(LocalRay(*sys.argv[1:])):
    actors = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    places = [row["name"] for row in placement_group_table().values() if row["state"] != "REMOVED"]
print(*actors, *places)
"""


@pytest.fixture
def others() -> Iterator[LocalRay]:
    """A Ray that the commands find in $RAY_ADDRESS."""
    # At the machine's address, like a Ray of several nodes.
    ray = start_local_ray(host=node_ip_address_from_perspective())
    try:
        yield ray
    finally:
        ray.stop()


def _environment(others: LocalRay, tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    variables = {"BATON_HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "120", "RAY_ADDRESS": others.address}
    return {**os.environ, **variables, **others.access()}


@contextlib.contextmanager
def _waiting(environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A `baton up` whose workers wait for a node that never joins."""
    config = tmp_path / "cluster.toml"
    config.write_text(CONFIG)
    command = [*BATON, "up", "--config", str(config)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as up:
        assert up.stderr is not None
        try:
            assert any("decode-0     waiting for a node" in line for line in up.stderr), "it never came so far"
            yield up
        finally:
            up.kill()


def _left(others: LocalRay) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LEFT, others.address, others.folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_an_interrupted_start_leaves_nothing_on_it(others: LocalRay, tmp_path: Path) -> None:
    environment = _environment(others, tmp_path)
    with _waiting(environment, tmp_path) as up:
        up.send_signal(signal.SIGINT)
        began_s = time.monotonic()
        assert up.wait(timeout=60) == 130
        assert time.monotonic() - began_s < GOODBYE_S  # actors that do not run yet are not asked to end
    assert _left(others) == ""
    assert not (tmp_path / "home" / "cluster.json").exists()


@pytest.mark.slow
def test_down_keeps_the_note_until_the_ray_has_ended_the_actors(others: LocalRay, tmp_path: Path) -> None:
    environment = _environment(others, tmp_path)
    with _waiting(environment, tmp_path) as up:
        up.kill()
    assert "group-0" in _left(others)
    (gcs,) = (process for process in others.processes() if process.name() == "gcs_server")
    gcs.suspend()
    try:
        refused = baton_command(environment, "down")
    finally:
        gcs.resume()
    assert refused.returncode == 1
    assert "`baton down` tries it again" in refused.stderr
    down = baton_command(environment, "down")
    assert down.returncode == 0, down.stderr
    assert _left(others) == ""
    assert not (tmp_path / "home" / "cluster.json").exists()
