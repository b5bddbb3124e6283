"""A cluster in a container with little memory is sized for its limit, or refused before anything starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import baton
from tests.checkpoints import build_checkpoint
from tests.cli.commands import BATON
from tests.live.commands import ROOT
from tests.waiting import until

V1 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/cpu")
WHY_NOT = "" if os.geteuid() == 0 and all(path.is_dir() for path in V1) else "Needs root and cgroups of version 1."
MIB = 1 << 20
Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


@pytest.fixture
def groups() -> Iterator[list[Path]]:
    """A cgroup for memory and one for CPU time, for this test alone."""
    made = [hierarchy / f"baton-test-{os.getpid()}" for hierarchy in V1]
    for group in made:
        group.mkdir()
    try:
        yield made
    finally:
        until(lambda: not any((group / "cgroup.procs").read_text() for group in made))
        for group in made:
            group.rmdir()


@pytest.fixture
def run(groups: list[Path], tmp_path: Path) -> Run:
    """Runs a command with all its processes in these groups."""
    environment = {**os.environ, "BATON_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    inside = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups) + 'exec "$@"'

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", inside, "-", *command], env=environment, capture_output=True, text=True, timeout=120
        )

    return run


@pytest.fixture(scope="module")
def large_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with pages of 1 MiB in float32."""
    shape: dict[str, Any] = {
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    return build_checkpoint(tmp_path_factory.mktemp("large"), "qwen3", **shape)


def test_two_workers_with_large_pages_serve_under_1600_mib(
    run: Run, groups: list[Path], large_pages: Path, tmp_path: Path
) -> None:
    (groups[0] / "memory.limit_in_bytes").write_text(str(1600 * MIB))
    ports = ("--port", "0", "--admin-port", "0")
    up = run(*BATON, "up", "--model", str(large_pages), "--dtype", "float32", *ports)
    try:
        assert up.returncode == 0, up.stderr
        assert "under the limit of 1600 MiB" in up.stderr
        address = json.loads((tmp_path / "cluster.json").read_text())["address"]
        with baton.Client(address) as client, ThreadPoolExecutor(12) as threads:  # more than the pages suffice for
            asked = [[3 + index, *range(5, 300)] for index in range(24)]
            answers = threads.map(lambda prompt: client.generate(prompt, max_tokens=100, ignore_eos=True), asked)
            assert [len(answer.token_ids) for answer in answers] == [100] * len(asked)
    finally:
        run(*BATON, "down")
    assert "oom_kill 0" in (groups[0] / "memory.oom_control").read_text()


def test_too_small_a_container_is_refused_before_ray_starts(run: Run, groups: list[Path], tmp_path: Path) -> None:
    (groups[0] / "memory.limit_in_bytes").write_text(str(600 * MIB))
    up = run(*BATON, "up")
    assert up.returncode == 1
    assert "MiB free under the limit of 600 MiB" in up.stderr
    assert "ray" not in up.stderr.split("error:")[0]
    assert not (tmp_path / "cluster.json").exists()


def test_threads_follow_the_cpu_quota(run: Run, groups: list[Path]) -> None:
    (groups[1] / "cpu.cfs_quota_us").write_text("100000")
    done = run(sys.executable, "-c", "from baton.deploy.machine import machine_facts; print(machine_facts().cores)")
    assert done.stdout == "1\n"
