"""Administration of a live cluster: its own address, its answers and its errors."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

import baton
from baton.client.errors import ConfigError, InvalidRequest, NotFound
from baton.protocol.v1 import admin_pb2, admin_pb2_grpc
from tests.cli.commands import BATON
from tests.live.conftest import Live
from tests.plans import gateway_config, router_config

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]


def _worker(cluster: admin_pb2.Cluster, name: str) -> admin_pb2.WorkerStatus:
    (found,) = (worker for pool in cluster.pools for worker in pool.workers if worker.name == name)
    return found


def test_every_worker_serves_and_nothing_is_predicted_for_an_idle_one(split: Live) -> None:
    cluster = split.wait_idle()
    for name in split.workers:
        worker = _worker(cluster, name)
        assert (worker.state, worker.role_epoch) == ("serving", 0)
        assert (worker.predicted_busy_s, worker.predicted_tpot_s, worker.predicted_peak_pages) == (0, 0, 0)


def test_a_running_request_shows_in_the_predictions_for_its_worker(split: Live) -> None:
    with split.client() as client, split.admin() as admin:
        stream = client.stream([7] * 60, max_tokens=190, ignore_eos=True)
        next(stream)
        worker = _worker(admin.cluster(), "decode-0")
        stream.cancel()
    assert worker.predicted_tpot_s > 0
    assert worker.predicted_peak_pages >= 60 // 16
    split.wait_idle()


def test_administration_and_requests_each_have_a_port_of_their_own(split: Live) -> None:
    with baton.Admin(split.address) as admin, pytest.raises(ConfigError, match="ports of their own"):
        admin.cluster()
    with baton.Client(split.admin_address) as client, pytest.raises(ConfigError, match="ports of their own"):
        client.generate([1, 2], max_tokens=1)


def test_a_router_or_gateway_whose_port_is_in_use_names_the_port(split: Live, checkpoint: Path) -> None:
    from baton.gateway.build import start_gateway
    from baton.router.build import start_router

    port = int(split.admin_address.rpartition(":")[2])  # Without SO_REUSEPORT, unlike a gateway's
    with pytest.raises(ConfigError, match=split.admin_address):
        asyncio.run(start_router(router_config(checkpoint, admin_port=port)))
    with pytest.raises(ConfigError, match=split.admin_address):
        asyncio.run(start_gateway(gateway_config(checkpoint, port=port)))


def test_another_policy_decides_from_now_on(split: Live) -> None:
    with split.client() as client, split.admin() as admin:
        assert admin.policy().name == "least_loaded"
        try:
            assert admin.policy("round_robin").name == "round_robin"
            assert admin.cluster().settings["policy"] == "round_robin"
            answer = client.generate([3, 4, 5], max_tokens=2, ignore_eos=True)
            assert admin.explain(answer.request_id).policy == "round_robin"
        finally:
            assert admin.policy("least_loaded").name == "least_loaded"
        answer = client.generate([3, 4, 6], max_tokens=2, ignore_eos=True)
        assert admin.explain(answer.request_id).policy == "least_loaded"


def test_a_mistyped_policy_is_refused_with_the_nearest_name(split: Live) -> None:
    with split.admin() as admin:
        with pytest.raises(InvalidRequest, match="did you mean 'least_loaded'"):
            admin.policy("least_loadet")
        assert admin.policy().name == "least_loaded"
        assert "round_robin" in admin.policy().known


def test_an_unknown_worker_or_operation_is_named(split: Live) -> None:
    with split.admin() as admin:
        for ask in (lambda: list(admin.watch("never-begun")), lambda: admin.cancel("never-begun")):
            with pytest.raises(NotFound, match="never-begun"):
                ask()
        for ask in (lambda: admin.drain("no-such-worker"), lambda: admin.undrain("no-such-worker")):
            with pytest.raises(NotFound, match="no-such-worker"):
                ask()


def test_an_operation_without_content_is_refused(split: Live) -> None:
    with grpc.insecure_channel(split.admin_address) as channel, pytest.raises(grpc.RpcError) as caught:
        admin_pb2_grpc.AdminStub(channel).StartOperation(admin_pb2.StartOperationRequest())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "set drain" in caught.value.details()


def test_the_planner_acts_only_when_automation_is_on(split: Live) -> None:
    with split.admin() as admin:
        before = admin.cluster().planner.auto
        try:
            assert admin.auto(not before).auto is not before
            assert admin.cluster().planner.auto is not before
        finally:
            admin.auto(before)


def _baton(live: Live, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*BATON, *arguments]
    given = {**os.environ, "PYTHONPATH": str(ROOT), "BATON_ADMIN_ADDRESS": live.admin_address, "COLUMNS": "120"}
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60)


def test_the_commands_find_the_cluster_by_its_address(split: Live) -> None:
    status = json.loads(_baton(split, "status", "--json").stdout)
    assert [pool["role"] for pool in status["pools"]] == ["prefill", "decode"]
    unknown = _baton(split, "drain", "no-such-worker")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no-such-worker" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_the_shell_completes_names_of_live_workers(split: Live) -> None:
    command = [sys.executable, "-c", "from baton.cli.main import app; app(prog_name='baton')"]
    given = {**os.environ, "PYTHONPATH": str(ROOT), "BATON_ADMIN_ADDRESS": split.admin_address}
    asked = {"_BATON_COMPLETE": "complete_bash", "COMP_WORDS": "baton drain ", "COMP_CWORD": "2"}
    done = subprocess.run(command, env={**given, **asked}, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == split.workers
