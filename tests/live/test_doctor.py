"""`baton doctor` on a live cluster."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import baton
from baton.harness.process_cluster import ProcessCluster, plans
from tests.checkpoints import build_checkpoint
from tests.cli.commands import BATON
from tests.live.processes import Play
from tests.reliability.steady import steady_streams

ROOT = Path(__file__).resolve().parents[2]


def _leaks(admin_address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*BATON, "doctor", "leaks"]
    return subprocess.run(
        [*command, "--admin", admin_address, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


async def _under_streams(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
    async with steady_streams(cluster, client) as streams:
        admin_address = f"127.0.0.1:{cluster.router.admin_port}"
        shown = await asyncio.to_thread(_leaks, admin_address, "--seconds", "1", "--json")
        assert shown.returncode == 0, shown
        workers = json.loads(shown.stdout)["workers"]
        assert [worker["name"] for worker in workers] == ["decode-0", "decode-1", "prefill-0"]
        assert all(worker["reported"] for worker in workers)
        assert any(worker["pages_in_use"] for worker in workers)
    assert not streams.wrong


def test_a_busy_cluster_leaks_nothing(play: Play) -> None:
    play(_under_streams)


def _links(admin_address: str, *arguments: str) -> str:
    command = [*BATON, "doctor", "links"]
    command += ["--admin", admin_address, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_rate_of_a_link_is_known_after_three_large_writes(tmp_path: Path) -> None:
    """Pages have 64 KiB per token: a prompt of 1024 tokens is one write of 64 MiB."""
    heads: dict[str, Any] = {
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "num_hidden_layers": 4,
    }
    checkpoint = build_checkpoint(tmp_path, "qwen3", max_position_embeddings=1200, **heads)
    router_config, worker_config = plans(checkpoint, 1200, 200, policy="least_loaded", chunk_tokens=1024)

    async def measure() -> tuple[str, str]:
        cluster = ProcessCluster(router_config, worker_config, {"prefill": 1, "decode": 1})
        async with cluster, baton.AsyncClient(cluster.address) as client:
            admin_address = f"127.0.0.1:{cluster.router.admin_port}"
            nothing = await asyncio.to_thread(_links, admin_address)
            for number in range(3):
                await client.generate([3 + number] * 1025, max_tokens=2)
            links = cluster.router.driver.core.membership.rates
            await cluster.until(lambda: bool(links.rates()))
            return nothing, await asyncio.to_thread(_links, admin_address, "--json")

    nothing, shown = asyncio.run(measure())
    assert "No link is measured yet" in nothing
    (link,) = json.loads(shown)["links"]
    assert (link["source"], link["target"], link["same_host"]) == ("prefill-0", "decode-0", True)
    assert int(link["num_bytes"]) == 64 << 20
    assert 0.01 < int(link["num_bytes"]) / link["seconds"] / 1e9 < 1000
    assert link["warning"] == ""  # transfers between CPUs have no expected rate
