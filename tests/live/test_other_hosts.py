"""Other hosts reach no port of a cluster: tried from a network namespace behind a virtual cable."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from baton.deploy.local_ray import LocalRay
from tests.live.conftest import Live
from tests.reliability.cables import Cables, why_not

pytestmark = pytest.mark.ray

_WHY_NOT = why_not()
OTHER_HOST = "other-host"
# Runs in the other namespace: the addresses and ports that accept a connection.
KNOCK = """
import json, socket, sys

opened = []
for address in json.loads(sys.argv[1]):
    for port in json.loads(sys.argv[2]):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as knock:
            knock.settimeout(2)
            if knock.connect_ex((address, port)) == 0:
                opened.append([address, port])
print(json.dumps(opened))
"""


@pytest.fixture(scope="module")
def cables() -> Iterator[Cables]:
    with Cables() as made:
        made.plug(OTHER_HOST)
        yield made


def _listening(ray: LocalRay) -> dict[int, str]:
    """Port → address of every TCP listener and UDP socket of this Ray's processes."""
    found: dict[int, str] = {}
    for process in ray.processes():
        for each in process.net_connections("inet"):
            if each.status == psutil.CONN_LISTEN or each.type == socket.SOCK_DGRAM:
                found[each.laddr.port] = each.laddr.ip
    return found


def _addresses() -> list[str]:
    """The machine's own addresses, including loopback."""
    families = (socket.AF_INET, socket.AF_INET6)
    every = [each for addresses in psutil.net_if_addrs().values() for each in addresses if each.family in families]
    return sorted({each.address for each in every if "%" not in each.address})


def _opened(cables: Cables, ports: list[int]) -> list[list[str | int]]:
    """The ports that another host can connect to, at those addresses of this machine that it does not have itself."""
    addresses = [address for address in _addresses() if address not in {"127.0.0.1", "::1"}]
    route = ["ip", "-n", cables.namespace(OTHER_HOST), "route", "replace", "default", "via", cables.address]
    subprocess.run(route, check=True)
    there = ["ip", "netns", "exec", cables.namespace(OTHER_HOST)]
    command = [*there, sys.executable, "-c", KNOCK, json.dumps(addresses), json.dumps(ports)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_every_process_of_a_cluster_listens_on_loopback_only(split: Live, ray_head: LocalRay) -> None:
    listening = _listening(ray_head)
    assert len(listening) >= 9  # GCS, raylet (2), runtime environments, router (2), gateway (2), two workers
    assert {address.removeprefix("::ffff:") for address in listening.values()} == {"127.0.0.1"}
    assert 10001 not in listening


@pytest.mark.slow
@pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)
def test_no_port_of_a_cluster_accepts_a_connection_from_another_host(
    split: Live, ray_head: LocalRay, cables: Cables
) -> None:
    with socket.create_server(("", 0)) as door:  # the check finds an open port
        open_port = door.getsockname()[1]
        opened = _opened(cables, [open_port, *_listening(ray_head)])
    assert [cables.address, open_port] in opened
    assert {port for _, port in opened} == {open_port}
