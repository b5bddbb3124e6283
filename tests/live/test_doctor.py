"""`baton doctor` on a live cluster."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import baton
from benchmarks.process_cluster import ProcessCluster, plans
from benchmarks.steady_streams import SteadyStreams

ROOT = Path(__file__).resolve().parents[2]


def _leaks(admin_address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from baton.cli import main; main()", "doctor", "leaks"]
    return subprocess.run(
        [*command, "--admin", admin_address, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


async def _under_streams(folder: Path) -> None:
    router_plan, worker_plan = plans(folder, 256, 400, policy="least_loaded", chunk_tokens=64)
    async with ProcessCluster(router_plan, worker_plan, {"prefill": 1, "decode": 1}) as cluster:
        admin_address = f"127.0.0.1:{cluster.router.admin_port}"
        async with baton.AsyncClient(f"127.0.0.1:{cluster.router.port}") as client:
            async with SteadyStreams(cluster, client) as streams:
                shown = await asyncio.to_thread(_leaks, admin_address, "--seconds", "1", "--json")
                assert shown.returncode == 0, shown
                workers = {one["name"]: one for one in json.loads(shown.stdout)["workers"]}
                assert workers["decode-0"]["pages_held"] > 0
                assert all(one["reported"] for one in workers.values())
            assert not streams.wrong


def test_a_cluster_at_work_leaks_nothing(checkpoint: Path) -> None:
    asyncio.run(asyncio.wait_for(_under_streams(checkpoint), 90))
