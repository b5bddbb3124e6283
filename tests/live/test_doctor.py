"""`baton doctor` on a live cluster."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import baton
from benchmarks.process_cluster import ProcessCluster
from benchmarks.steady_streams import SteadyStreams
from tests.live.processes import Play

ROOT = Path(__file__).resolve().parents[2]


def _leaks(admin_address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from baton.cli import main; main()", "doctor", "leaks"]
    return subprocess.run(
        [*command, "--admin", admin_address, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


async def _under_streams(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
    async with SteadyStreams(cluster, client) as streams:
        admin_address = f"127.0.0.1:{cluster.router.admin_port}"
        shown = await asyncio.to_thread(_leaks, admin_address, "--seconds", "1", "--json")
        assert shown.returncode == 0, shown
        workers = json.loads(shown.stdout)["workers"]
        assert [one["name"] for one in workers] == ["decode-0", "decode-1", "prefill-0"]
        assert all(one["reported"] for one in workers)
        assert any(one["pages_held"] for one in workers)
    assert not streams.wrong


def test_a_cluster_at_work_leaks_nothing(play: Play) -> None:
    play(_under_streams)
