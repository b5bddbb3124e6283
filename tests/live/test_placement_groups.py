"""Two Ray nodes on one machine: packed workers share a node, spread workers do not; a gateway may be on either."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.state import actors as actor_table
from ray.util.placement_group import get_placement_group, placement_group_table

from baton.config.facts import MachineFacts, ModelFacts
from baton.config.parse import parse_config
from baton.config.resolve import Resolved, resolve
from baton.deploy.launcher import start_cluster, start_workers, stop_cluster, stop_workers
from baton.deploy.local_ray import LocalRay
from baton.deploy.placement_groups import release_groups, reserve_groups
from baton.engine.checkpoint import read_config
from tests.live.conftest import CONTEXT_TOKENS, Live
from tests.waiting import until

pytestmark = pytest.mark.ray

SECOND_ADDRESS = "127.0.0.2"
# `ray`, which would otherwise replace the head's loopback address by the machine's.
JOIN_ON_LOOPBACK = """
from ray._private import services
services.resolve_ip_for_localhost = lambda host: host
from ray.scripts.scripts import main

main()
"""


@pytest.fixture(scope="module")
def second_node(ray_head: LocalRay) -> Iterator[LocalRay]:
    """A second node with its own address."""
    command = [
        *(sys.executable, "-c", JOIN_ON_LOOPBACK, "start", f"--address={ray_head.address}"),
        *(f"--node-ip-address={SECOND_ADDRESS}", "--num-cpus=2", "--labels=rack=second"),
        *("--object-store-memory=80000000", "--disable-usage-stats"),
    ]
    try:
        environment = {**ray_head.environment(), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=90)
        yield ray_head
    finally:
        _end(ray_head)


def _end(ray_head: LocalRay) -> None:
    """End the second node and wait until Ray has noticed: until then Ray would still place actors there."""
    processes = []
    for process in ray_head.processes():
        with contextlib.suppress(psutil.Error):
            if f"--node-ip-address={SECOND_ADDRESS}" in " ".join(process.cmdline()).replace("_", "-"):
                process.terminate()
                processes.append(process)
    until(lambda: not any(n["Alive"] for n in ray.nodes() if n["NodeManagerAddress"] == SECOND_ADDRESS), timeout_s=60)
    for process in psutil.wait_procs(processes, timeout=10)[1]:
        process.kill()


def _resolved(folder: Path, placement: str, gateway_host: str = "127.0.0.1") -> Resolved:
    config = read_config(folder)
    facts = ModelFacts(str(folder), "test", CONTEXT_TOKENS, 2 * config.num_layers * config.num_kv_heads * 16)
    text = f"""
        [engine]
        num_pages = 200
        threads = 1
        [gateway]
        host = "{gateway_host}"
        port = 0
        http_port = 0
        [router]
        admin_port = 0
        policy = "least_loaded"
        {placement}
    """
    return resolve(parse_config(text), MachineFacts(2, 1 << 32, False), facts)


def _nodes(group: str) -> list[str]:
    """The node of each bundle."""
    place = get_placement_group(group)
    assert place.wait(30)
    bundles = placement_group_table(place)["bundles_to_node_id"]
    return [bundles[index] for index in sorted(bundles)]


def group_names(prefix: str) -> list[str]:
    table = placement_group_table().values()
    return [row["name"] for row in table if row["name"].startswith(prefix) and row["state"] != "REMOVED"]


@pytest.mark.slow
def test_packed_workers_share_a_node(second_node: LocalRay, checkpoint: Path) -> None:
    each = "[placement.prefill]\ncpus = 1\n[placement.decode]\ncpus = 1\nlabels = { rack = 'second' }"
    reserve_groups(_resolved(checkpoint, f"[placement]\nstrategy = 'pack'\n{each}"), "packed-")
    try:
        assert len(_nodes("packed-group-0")) == 2
        assert len(set(_nodes("packed-group-0"))) == 1
    finally:
        release_groups("packed-")
    assert group_names("packed-") == []


@pytest.mark.slow
def test_spread_workers_serve_from_two_nodes_and_the_ranks_of_one_share_its_node(
    second_node: LocalRay, checkpoint: Path
) -> None:
    each = "\n".join(
        f"[placement.{pool}]\ncpus = {cpus}\nenv = {{ UCX_TLS = 'tcp', UCX_NET_DEVICES = 'lo' }}"
        for pool, cpus in (("prefill", 1), ("decode", 0.5))
    )
    resolved = _resolved(checkpoint, f"[tensor_parallel]\ndecode = 2\n[placement]\nstrategy = 'spread'\n{each}")
    prompt = list(range(5, 105))
    try:
        started = start_cluster(resolved, lambda process, stage: None, "spread-", worker_host="")
        nodes = _nodes("spread-group-0")
        assert len(set(nodes)) == 2
        ranks = [actor for actor in actor_table().values() if actor["ActorClassName"] == "RankActor"]
        assert [actor["Address"]["NodeID"] for actor in ranks if actor["State"] == "ALIVE"] == [nodes[1]]
        live = Live(started.address, checkpoint, started.workers, started.admin_address)
        live.wait_idle()
        with live.client() as client:
            first = client.generate(prompt, max_tokens=8, ignore_eos=True)
            assert first.handoff is not None
            assert first.handoff.pages_sent > 0
            # A restarted worker uses its bundle of the group again.
            stop_workers(resolved, ["prefill-0"], "spread-")
            assert group_names("spread-") == ["spread-group-0"]
            start_workers(resolved, [("prefill-0", "prefill")], started.worker_address, lambda *_: None, "spread-")
            assert client.generate(prompt, max_tokens=8, ignore_eos=True).token_ids == first.token_ids
        stop_workers(resolved, ["prefill-0", "decode-0"], "spread-")
        assert group_names("spread-") == []
    finally:
        stop_cluster("spread-")


@pytest.mark.slow
def test_a_gateway_serves_from_another_node(second_node: LocalRay, checkpoint: Path) -> None:
    placement = "[pools]\ngateways = 2\n[placement.gateway]\nlabels = { rack = 'second' }"
    resolved = _resolved(checkpoint, placement, gateway_host="0.0.0.0")
    try:
        started = start_cluster(resolved, lambda process, stage: None, "far-", worker_host="")
        assert set(started.addresses) == {started.address}
        assert started.address.startswith(f"{SECOND_ADDRESS}:")
        live = Live(started.address, checkpoint, started.workers, started.admin_address)
        live.wait_idle()
        with live.client() as client, live.admin() as admin:
            assert client.generate([5] * 40, max_tokens=8, ignore_eos=True).output_tokens == 8
            gateways = admin.cluster().gateways
        assert [(each.name, each.public_address) for each in gateways] == [
            ("gateway-0", started.address),
            ("gateway-1", started.address),
        ]
    finally:
        stop_cluster("far-")
