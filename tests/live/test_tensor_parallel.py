"""Workers of two ranks under Ray: they serve, end and return together, and leave nothing."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import baton
from baton.config.resolve import Resolved
from baton.deploy.launcher import start_workers, stop_cluster, stop_workers
from baton.deploy.local_ray import LocalRay
from tests.live.commands import ROOT, baton_command, left_behind
from tests.live.conftest import Live, live_cluster, resolved_for
from tests.live.test_placement_groups import group_names
from tests.waiting import until

pytestmark = pytest.mark.ray

PREFIX = "ranks-"
OPTIONS: dict[str, Any] = {"max_tokens": 150, "ignore_eos": True, "temperature": 0.8, "seed": 5}
PROMPT = [7, 8, 9] * 12
# Each worker takes half a core, a quarter for each rank.
SECTIONS: dict[str, dict[str, Any]] = {
    "tensor_parallel": {"prefill": 2, "decode": 2},
    "placement": {"prefill": {"cpus": 0.25}, "decode": {"cpus": 0.25}},
}


def _ranks(admin_address: str) -> dict[str, list[int]]:
    """The processes of each registered worker's ranks."""
    with baton.Admin(admin_address) as admin:
        return {worker.name: list(worker.rank_pids) for pool in admin.cluster().pools for worker in pool.workers}


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill_a_rank_of_a_running_stream(address: str, admin_address: str, worker: str, prompt: Any) -> None:
    """The stream continues with the tokens of an undisturbed one, and the worker returns with new processes."""
    with baton.Client(address) as client:
        expected = client.generate(prompt, **OPTIONS)
        stream = client.stream(prompt, **OPTIONS)
        next(stream)
        before = _ranks(admin_address)[worker]
        assert len(before) == 2
        os.kill(before[1], signal.SIGKILL)
        answer = stream.answer
        assert answer.token_ids == expected.token_ids
        assert [token.index for token in answer.tokens] == list(range(len(answer.tokens)))
        assert answer.attempts == 2
        until(lambda: not {*_ranks(admin_address).get(worker, before)} & {*before}, timeout_s=60)
        assert not any(map(_lives, before))
        assert client.generate(prompt, **OPTIONS).token_ids == expected.token_ids


@pytest.mark.slow
def test_a_laptop_serves_with_two_ranks_per_worker_from_up_to_down(tmp_path: Path) -> None:
    rays_before = {str(path) for path in Path("/tmp").glob("baton-ray-*")}
    environment = {**os.environ, "BATON_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    ports = [word for name in ("", "http-", "admin-", "admin-http-") for word in (f"--{name}port", "0")]
    up = baton_command(environment, "up", "--tensor-parallel", "2", "--prefill", "1", "--decode", "1", *ports, "--json")
    pids: list[int] = []
    try:
        assert up.returncode == 0, up.stderr
        assert "prefill 2, decode 2 ranks per worker" in up.stderr
        cluster = json.loads(up.stdout)
        shown = json.loads(baton_command(environment, "status", "--json").stdout)
        workers = [worker for pool in shown["pools"] for worker in pool["workers"]]
        pids = [pid for worker in workers for pid in worker["rank_pids"]]
        assert [worker["rank_pids"][0] for worker in workers] == [worker["pid"] for worker in workers]
        assert len({*pids}) == 4
        assert f"2 ({pids[0]}, {pids[1]})" in baton_command(environment, "status").stdout
        assert _open_ports(pids) == []
        _kill_a_rank_of_a_running_stream(
            cluster["address"], cluster["admin_address"], "decode-0", "write : the old fox and the young fox"
        )
        pids += [pid for ranks in _ranks(cluster["admin_address"]).values() for pid in ranks]
    finally:
        down = baton_command(environment, "down")
    assert down.returncode == 0, down.stderr
    assert not any(map(_lives, pids))
    assert left_behind(rays_before) == []


def _open_ports(pids: list[int]) -> list[str]:
    """Where these processes listen beyond loopback."""
    found = []
    for pid in pids:
        for connection in psutil.Process(pid).net_connections("inet"):
            address = ipaddress.ip_address(connection.laddr.ip)
            mapped = getattr(address, "ipv4_mapped", None) or address
            if connection.status == psutil.CONN_LISTEN and not mapped.is_loopback:
                found.append(f"{pid} on {connection.laddr}")
    return found


@pytest.fixture
def resolved(checkpoint: Path) -> Resolved:
    return resolved_for(checkpoint, {"prefill": 1, "decode": 1}, policy="least_loaded", sections=SECTIONS)


@pytest.fixture
def live(ray_head: LocalRay, resolved: Resolved) -> Iterator[Live]:
    yield live_cluster(resolved, PREFIX)
    stop_cluster(PREFIX)


@pytest.mark.slow
def test_each_worker_of_two_ranks_has_a_placement_group_while_it_lives(live: Live, resolved: Resolved) -> None:
    own = [f"{PREFIX}group-{name}" for name in ("decode-0", "prefill-0")]
    assert sorted(group_names(PREFIX)) == own
    _kill_a_rank_of_a_running_stream(live.address, live.admin_address, "decode-0", PROMPT)
    start_workers(resolved, [("decode-1", "decode")], live.worker_address, lambda *_: None, PREFIX)
    assert sorted(group_names(PREFIX)) == [own[0], f"{PREFIX}group-decode-1", own[1]]
    until(lambda: "decode-1" in _ranks(live.admin_address), timeout_s=20)
    ranks = _ranks(live.admin_address)
    stop_workers(resolved, ["decode-1"], PREFIX)
    assert sorted(group_names(PREFIX)) == own
    until(lambda: not any(map(_lives, ranks["decode-1"])), timeout_s=20)
    os.kill(ranks["decode-0"][1], signal.SIGSTOP)
    stop_cluster(PREFIX)
    assert group_names(PREFIX) == []
    until(lambda: not any(_lives(pid) for pids in ranks.values() for pid in pids), timeout_s=20)
