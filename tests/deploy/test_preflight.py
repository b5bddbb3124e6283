"""Whatever would prevent a start is found before anything is started; IPv6 addresses work like IPv4 ones."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from baton.builtin_model import CHECKPOINT
from baton.client.client import AsyncClient
from baton.config.parse import parse_config
from baton.deploy.local_ray import free_port
from baton.deploy.preflight import check_addresses, check_note, ray_host
from baton.gateway.build import start_gateway
from baton.links.frame_client import FrameClient
from baton.links.frame_server import FrameServer
from baton.protocol.address import join
from baton.protocol.codec import FROM_ROUTER_TO_WORKER, TO_ROUTER
from baton.protocol.errors import ConfigError
from baton.protocol.messages import WorkerMessage
from baton.protocol.session_messages import Alive
from tests.own_network import LOOPBACK_IPV6_ONLY, OWN_NETWORK, needs_own_network
from tests.plans import gateway_config, router_config, start_front

ROOT = Path(__file__).resolve().parents[2]


def _check(host: str = "127.0.0.1", port: int = 0, admin_host: str = "127.0.0.1", admin_port: int = 0) -> None:
    gateway = {"host": host, "port": port, "http_port": 0}
    router = {"admin_host": admin_host, "admin_port": admin_port, "admin_http_port": 0}
    check_addresses(parse_config("", {"gateway": gateway, "router": router}))


def _refusal(**settings: Any) -> str:
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        _check(**settings)
    assert time.monotonic() - started < 5.0
    message = caught.value.message
    assert ".." not in message
    assert "GRPC" not in message
    return message


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost", "0.0.0.0", "::"])
def test_an_address_of_this_machine_is_accepted(host: str) -> None:
    _check(host, free_port(), host, free_port())
    _check(host, admin_host=host)


@pytest.mark.parametrize("host", ["203.0.113.9", "2001:db8::9", "no-such-host.invalid", "not an address", "[::1"])
def test_another_address_is_refused_with_its_key(host: str) -> None:
    assert f"gateway.host is {host!r}, which is not an address of this machine" in _refusal(host=host)
    assert "router.admin_host" in _refusal(admin_host=host)


def test_the_port_for_metrics_is_one_of_its_own() -> None:
    port = free_port()
    gateway = {"port": port, "http_port": 0, "metrics_port": port}
    config = parse_config("", {"gateway": gateway, "router": {"admin_port": 0, "admin_http_port": 0}})
    with pytest.raises(ConfigError, match=f"gateway.port and gateway.metrics_port are both {port}"):
        check_addresses(config)


def test_the_address_of_gateways_on_other_nodes_is_not_checked_here() -> None:
    gateway, placed = {"host": "203.0.113.9", "port": 0, "http_port": 0}, {"gateway": {"labels": {"pool": "gateway"}}}
    check_addresses(
        parse_config("", {"gateway": gateway, "placement": placed, "router": {"admin_port": 0, "admin_http_port": 0}})
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_in_use_is_reported_with_its_process(host: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        taken.bind((host, 0))
        taken.listen()
        message = _refusal(host=host, port=taken.getsockname()[1])
    assert f"is in use by pid {os.getpid()}: choose another port" in message


def test_one_port_for_both_is_refused() -> None:
    assert "each needs a port of its own" in _refusal(port=50077, admin_port=50077)


def test_an_unwritable_folder_for_the_note_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BATON_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ConfigError, match="BATON_HOME"):
        check_note()
    monkeypatch.setenv("BATON_HOME", str(tmp_path / "new" / "home"))
    check_note()
    assert list((tmp_path / "new" / "home").iterdir()) == []


def test_a_cluster_on_one_machine_starts_ray_on_loopback() -> None:
    assert ray_host() == "127.0.0.1"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_worker_reaches_the_router_over_either_kind_of_address(host: str) -> None:
    async def first_frame() -> tuple[str, list[WorkerMessage]]:
        link = FrameServer(f"tcp://{join(host, '*')}", TO_ROUTER)
        came: asyncio.Future[tuple[str, list[WorkerMessage]]] = asyncio.get_running_loop().create_future()
        link.start(lambda worker, incarnation, batch: came.set_result((worker, batch)))
        worker = FrameClient(link.address, "decode-0", FROM_ROUTER_TO_WORKER)
        try:
            worker.send([Alive()])
            return await asyncio.wait_for(came, 10)
        finally:
            worker.close()
            link.close()

    assert asyncio.run(first_frame()) == ("decode-0", [Alive()])


@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_a_gateway_and_a_router_serve_over_ipv6(host: str) -> None:
    plan = router_config(CHECKPOINT, worker_host="::1", admin_host="::1")

    async def name_of_model() -> str:
        front = await start_front(plan, host=host)
        try:
            assert front.address == f"[::1]:{front.gateway.port}"  # Also for the wildcard
            for link in (front.router.addresses.worker, front.gateway.addresses.worker):
                assert link.startswith("tcp://[::1]:")
            async with AsyncClient(front.address) as client:
                return (await client.model()).name
        finally:
            await front.stop()

    assert asyncio.run(name_of_model()) == "m"


def test_an_address_that_cannot_be_served_is_reported_in_batons_own_words() -> None:
    plan = gateway_config(CHECKPOINT, host="203.0.113.9", port=1)
    with pytest.raises(ConfigError) as caught:
        asyncio.run(start_gateway(plan))
    assert "cannot be served on 203.0.113.9:1" in caught.value.message
    assert "GRPC" not in caught.value.message
    assert ".." not in caught.value.message


WITHOUT_IPV4 = f"""
{LOOPBACK_IPV6_ONLY}
exec "$0" -c "
import subprocess
from baton.config.parse import parse_config
from baton.protocol.errors import ConfigError
from baton.deploy.local_ray import free_port, loopback
from baton.deploy.preflight import check_addresses, ray_host
assert loopback() == '::1' and free_port() > 0
gateway, router = {{'host': '::1', 'port': free_port()}}, {{'admin_host': '::', 'admin_port': 0}}
check_addresses(parse_config('', {{'gateway': gateway, 'router': router}}))
try:
    ray_host()
except ConfigError as error:
    print(error)
subprocess.run(['ip', 'addr', 'add', 'fd00::1/64', 'dev', 'lo'], check=True)
print(ray_host())
"
"""


@needs_own_network
def test_a_machine_without_ipv4_needs_an_ipv6_address_beside_loopback() -> None:
    command = [*OWN_NETWORK, "sh", "-c", WITHOUT_IPV4, sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    refusal, host = done.stdout.splitlines()
    assert "no IPv4 address, and its only IPv6 address is loopback" in refusal
    assert host == "fd00::1"
