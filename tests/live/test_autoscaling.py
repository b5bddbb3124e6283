"""Ray's own autoscaler adds a node for a worker and removes it again; KV pages cross between the nodes over TCP."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray._private.services import node_ip_address_from_perspective

import baton
from baton.deploy.local_ray import LocalRay, free_port, start_local_ray
from tests.waiting import until

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [
    [3 + (7 * index + position) % 300 for position in range(length)] for index, length in enumerate((5, 70, 150))
]
CONFIG = """
[model]
path = "{folder}"
dtype = "float32"
[pools]
prefill = 1
decode = 1
[engine]
num_pages = 200
chunk_tokens = 64
threads = 1
[gateway]
port = 0
http_port = 0
[router]
admin_port = 0
policy = "least_loaded"
[placement.prefill]
resources = {{ baton_prefill = 1 }}
labels = {{ pool = "prefill" }}
env = {{ UCX_TLS = "tcp" }}
[placement.decode]
resources = {{ baton_decode = 1 }}
env = {{ UCX_TLS = "tcp" }}
"""
# As in ray.cluster_utils.AutoscalingCluster, whose `start` and `shutdown` would end every Ray on the machine.
# Nodes of this provider are further raylets on this machine; the real autoscaler decides when they start and end.
AUTOSCALER = {
    "cluster_name": "test",
    "max_workers": 1,
    "idle_timeout_minutes": 0.1,
    "head_node_type": "ray.head.default",
    "auth": {},
    "available_node_types": {
        "ray.head.default": {
            "resources": {"baton_decode": 1, "baton_prefill": 1},
            "labels": {"pool": "prefill"},
            "node_config": {},
            "max_workers": 0,
        },
        "prefill": {
            "resources": {"CPU": 1, "baton_prefill": 1, "object_store_memory": 80_000_000},
            "labels": {"pool": "prefill"},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 1,
        },
    },
    "file_mounts": {},
    "cluster_synced_files": [],
    "setup_commands": [],
    "initialization_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


@pytest.fixture
def growing_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalRay]:
    """A Ray head with room for one worker of each pool; its autoscaler may add a node for a prefill worker."""
    monkeypatch.setenv("RAY_FAKE_CLUSTER", "1")
    monkeypatch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
    # Not the address of the Ray that other tests of this process use: that one is on loopback.
    host = node_ip_address_from_perspective()
    port = free_port(host)
    provider = {
        "type": "fake_multinode",
        "gcs_address": f"{host}:{port}",
        "disable_launch_config_check": True,
        "disable_node_updaters": True,
        "use_node_id_as_ip": True,
    }
    config = tmp_path / "autoscaler.json"
    config.write_text(json.dumps({**AUTOSCALER, "provider": provider}))
    resources = '--resources={"baton_decode": 1, "baton_prefill": 1}'
    options = [f"--autoscaling-config={config}", "--num-cpus=1", resources, "--labels=pool=prefill"]
    ray = start_local_ray(port=port, options=options, host=host)
    try:
        yield ray
    finally:
        ray.stop()
        assert not ray.processes()


def _answers(address: str) -> list[baton.Answer]:
    with baton.Client(address) as client:
        return [client.generate(prompt, max_tokens=20, ignore_eos=True, timeout_s=60) for prompt in PROMPTS]


def _pids(admin_address: str) -> dict[str, int]:
    with baton.Admin(admin_address) as admin:
        return {worker.name: worker.pid for pool in admin.cluster().pools for worker in pool.workers}


def _connected_by_tcp(one: int, other: int) -> bool:
    """Whether an established TCP connection goes from one process to the other."""
    ends = []
    for pid in (one, other):
        connections = psutil.Process(pid).net_connections("tcp")
        ends.append([(each.laddr, each.raddr) for each in connections if each.status == psutil.CONN_ESTABLISHED])
    return any((remote, local) in ends[1] for local, remote in ends[0])


def _raylets(ray: LocalRay) -> int:
    """The live nodes, including the head."""
    count = 0
    for process in ray.processes():
        with contextlib.suppress(psutil.Error):
            count += "/raylet/raylet" in "".join(process.cmdline()[:1])
    return count


@pytest.mark.slow
def test_a_node_is_added_for_a_worker_and_removed_after_its_drain(
    growing_ray: LocalRay, checkpoint: Path, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "BATON_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": growing_ray.address,
        **growing_ray.access(),
        "COLUMNS": "120",
    }
    config = tmp_path / "cluster.toml"
    config.write_text(CONFIG.format(folder=checkpoint))

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def command(*arguments: str) -> str:
        return run("-c", "from baton.cli.main import main; main()", *arguments)

    command("up", "--config", str(config))
    noted = json.loads((tmp_path / "cluster.json").read_text())
    address, admin_address = noted["address"], noted["admin_address"]
    before = _answers(address)
    assert _raylets(growing_ray) == 1

    assert "Started prefill-1." in command("scale", "--prefill", "+1")
    assert _raylets(growing_ray) == 2
    command("drain", "prefill-0")
    together = _answers(address)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in before]
    assert all(answer.prefill_worker == "prefill-1" for answer in together)
    assert all(answer.handoff and answer.handoff.pages_sent > 0 for answer in together)
    pids = _pids(admin_address)
    assert _connected_by_tcp(pids["prefill-1"], pids["decode-0"])

    command("undrain", "prefill-0")
    assert "Ended prefill-1." in command("scale", "--prefill", "-1")
    assert sorted(_pids(admin_address)) == ["decode-0", "prefill-0"]
    until(lambda: _raylets(growing_ray) == 1, timeout_s=40)
    assert [answer.token_ids for answer in _answers(address)] == [answer.token_ids for answer in before]
    command("down")
