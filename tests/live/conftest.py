"""Live clusters for the tests: real Ray, gRPC, ZeroMQ and NIXL, one Ray head for the whole run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import baton
from baton.config.facts import MachineFacts, ModelFacts
from baton.config.parse import parse_config
from baton.config.resolve import Resolved, resolve
from baton.deploy.launcher import start_cluster, stop_cluster
from baton.deploy.local_ray import LocalRay, start_local_ray
from baton.deploy.ray_connection import connected
from baton.engine.checkpoint import read_config
from baton.protocol.v1 import admin_pb2
from tests.checkpoints import build_checkpoint
from tests.live.processes import Play, playing

CONTEXT_TOKENS = 256
CHUNK_TOKENS = 64
PAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class Live:
    """A running cluster and the checkpoint it serves."""

    address: str
    folder: Path
    workers: list[str]
    admin_address: str
    worker_address: str = ""

    def client(self, **options: Any) -> baton.Client:
        return baton.Client(self.address, **options)

    def async_client(self) -> baton.AsyncClient:
        return baton.AsyncClient(self.address)

    def admin(self) -> baton.Admin:
        return baton.Admin(self.admin_address)

    def wait_idle(self, timeout_s: float = 20.0) -> admin_pb2.Cluster:
        """The cluster's state once no worker holds a page; fails if that takes longer than `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        with self.admin() as admin:
            while True:
                cluster = admin.cluster()
                workers = [worker for pool in cluster.pools for worker in pool.workers]
                busy = [worker for worker in workers if worker.pages_in_use or worker.running or worker.waiting]
                if not busy and not cluster.live_requests and len(workers) == len(self.workers):
                    return cluster
                assert time.monotonic() < deadline, f"still busy: {cluster}"
                time.sleep(0.05)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[LocalRay]:
    ray = start_local_ray()
    try:
        with connected(ray):
            yield ray
    finally:
        ray.stop()
        assert not ray.processes()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(
        tmp_path_factory.mktemp("checkpoint"), "llama3", seed=7, max_position_embeddings=CONTEXT_TOKENS
    )


def start_live(
    folder: Path, prefix: str, pools: dict[str, int], policy: str = "predicted_latency", **engine: Any
) -> Live:
    """A cluster whose actors' names begin with `prefix`."""
    return live_cluster(resolved_for(folder, pools, policy, **engine), prefix)


def resolved_for(
    folder: Path,
    pools: dict[str, int],
    policy: str = "predicted_latency",
    sections: dict[str, dict[str, Any]] | None = None,
    **engine: Any,
) -> Resolved:
    """The configuration of a small float32 cluster; `sections` are further ones."""
    config = read_config(folder)
    facts = ModelFacts(
        str(folder), "test", config.context_tokens, 2 * config.num_layers * config.num_kv_heads * config.head_dim
    )
    overrides = {
        "pools": {"prefill": 0, "decode": 0, "mixed": 0, **pools},
        "engine": {
            "page_size": PAGE_SIZE,
            "num_pages": 400,
            "chunk_tokens": CHUNK_TOKENS,
            "threads": 1,
            "checksum_every": 1,
            **engine,
        },
        "gateway": {"port": 0, "http_port": 0},
        "router": {"admin_port": 0, "admin_http_port": 0, "policy": policy},
        "model": {"dtype": "float32"},
        **(sections or {}),
    }
    return resolve(parse_config("", overrides), MachineFacts(2, 1 << 32, False), facts)


def live_cluster(resolved: Resolved, prefix: str) -> Live:
    """A cluster of this configuration whose actors' names begin with `prefix`."""
    started = start_cluster(resolved, lambda process, stage: None, prefix)
    folder = Path(resolved.model.path)
    return Live(started.address, folder, started.workers, started.admin_address, started.worker_address)


@pytest.fixture(scope="session")
def split(ray_head: LocalRay, checkpoint: Path) -> Iterator[Live]:
    """One prefill and one decode worker, under a policy that disaggregates every request."""
    yield start_live(checkpoint, "split-", {"prefill": 1, "decode": 1}, policy="least_loaded")
    stop_cluster("split-")


@pytest.fixture(scope="session")
def brain(ray_head: LocalRay, checkpoint: Path) -> Iterator[Live]:
    """Two prefill and one decode worker under the default policy."""
    yield start_live(checkpoint, "brain-", {"prefill": 2, "decode": 1})
    stop_cluster("brain-")


@pytest.fixture(scope="session")
def mixed(ray_head: LocalRay, checkpoint: Path) -> Iterator[Live]:
    """One mixed worker."""
    yield start_live(checkpoint, "mixed-", {"mixed": 1})
    stop_cluster("mixed-")


@pytest.fixture(scope="session")
def play() -> Iterator[Play]:
    """Runs scenarios on a cluster of plain processes (processes.py)."""
    with playing() as made:
        yield made
