"""A few streams at any time against a cluster of plain processes, which holds nothing afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import baton
from baton.harness.load import Load
from baton.harness.process_cluster import ProcessCluster

OPTIONS: dict[str, Any] = {"max_tokens": 160, "ignore_eos": True, "temperature": 0.8}
PROMPTS = [[5 + index] * (30 + 7 * index) for index in range(5)]
WIDTH = 6


@asynccontextmanager
async def steady_streams(cluster: ProcessCluster, client: baton.AsyncClient) -> AsyncIterator[Load]:
    """Streams of `WIDTH` clients during the block."""
    load = Load(client, OPTIONS, PROMPTS)
    await load.learn()
    async with load.clients(WIDTH):
        yield load
    await cluster.until_idle()
