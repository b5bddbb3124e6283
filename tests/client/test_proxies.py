"""Proxies in the environment: private addresses avoid them, others follow gRPC's rules, and errors name the proxy."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from baton.client.admin import Admin
from baton.client.client import AsyncClient, Client
from baton.client.errors import NoWorkers
from baton.client.proxy import avoids_proxies, proxy_of
from tests.client.fake_admin import FakeAdmin
from tests.client.fake_admin import serving as serving_admin
from tests.client.fake_inference import FakeInference, dead_port, serving, tokens

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


PRIVATE = [
    "127.0.0.1:50051",
    "127.9.9.9:1",
    "[::1]:50051",
    "localhost:50051",
    "10.1.2.3:1",
    "172.16.0.1:1",
    "172.31.255.255:1",
    "192.168.0.9:1",
    "[fd00::7]:1",
    "[fe80::1]:1",
    "169.254.1.1:1",
    "router:50051",
    "node7.local:50051",
    "Host.LOCAL.:1",
    "api.localhost:1",
    "unix:/tmp/a",
    "unix-abstract:b",
    "dns:///127.0.0.1:50051",
    "ipv4:10.0.0.1:50051",
    "[::ffff:10.0.0.1]:1",
]
PUBLIC = [
    "8.8.8.8:50051",
    "172.32.0.1:1",
    "11.0.0.1:1",
    "router.example.com:50051",
    "[2001:4860::1]:1",
    "local.example:1",
    "dns:///router.example.com:1",
    "[::ffff:8.8.8.8]:1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_avoids_proxies(address: str) -> None:
    assert avoids_proxies(address)
    assert proxy_of(address, {"https_proxy": "http://proxy:3128"}) == ""


@pytest.mark.parametrize("address", PUBLIC)
def test_another_address_may_need_a_proxy(address: str) -> None:
    assert not avoids_proxies(address)
    assert proxy_of(address, {"https_proxy": "http://proxy:3128"}) == "proxy:3128 ($https_proxy)"


EXCEPTIONS = [
    ({"http_proxy": "http://a:1", "https_proxy": "http://b:2"}, "b:2 ($https_proxy)"),
    ({"http_proxy": "http://a:1", "grpc_proxy": "http://c:3/"}, "c:3 ($grpc_proxy)"),
    ({"http_proxy": "http://a:1", "grpc_proxy": ""}, ""),
    ({"http_proxy": "http://user:secret@a:1"}, "a:1 ($http_proxy)"),
    ({"http_proxy": "http://a:1", "no_proxy": "localhost, .example.com"}, ""),
    ({"http_proxy": "http://a:1", "no_proxy": ".example.com", "no_grpc_proxy": "other.org"}, "a:1 ($http_proxy)"),
    ({}, ""),
]


@pytest.mark.parametrize(("environment", "proxy"), EXCEPTIONS)
def test_the_proxy_is_chosen_as_by_grpc(environment: dict[str, str], proxy: str) -> None:
    assert proxy_of("router.example.com:50051", environment) == proxy


def test_no_proxy_may_name_a_network() -> None:
    environment = {"http_proxy": "http://a:1", "no_proxy": "8.8.0.0/16"}
    assert proxy_of("8.8.4.4:1", environment) == ""
    assert proxy_of("9.9.9.9:1", environment) == "a:1 ($http_proxy)"


def _asked(address: str) -> list[int]:
    with Client(address) as client:
        return client.generate([1]).token_ids


def _asked_async(address: str) -> list[int]:
    async def run() -> list[int]:
        async with AsyncClient(address) as client:
            return (await client.generate([1])).token_ids

    return asyncio.run(run())


ASK = [_asked, _asked_async]


@pytest.mark.parametrize("variable", VARIABLES[:3])
def test_this_machine_is_reached_although_the_proxy_is_dead(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, f"http://{dead_port()}")
    with serving(FakeInference([tokens(5, 6)])) as (address, _):
        for ask in ASK:
            assert ask(address) == [5, 6]
    with serving_admin(FakeAdmin()) as address, Admin(address) as admin:  # type: ignore[abstract]
        assert admin.cluster().model == "fake"


@contextmanager
def _proxy(
    towards: str, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n"
) -> Iterator[tuple[str, list[str]]]:
    """A proxy that connects everything to `towards`; yields its address and the requests it received."""
    asked: list[str] = []
    host, _, port = towards.rpartition(":")

    def carry(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def accept(listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            head = b""
            while b"\r\n\r\n" not in head and (data := client.recv(4096)):
                head += data
            asked.append(head.decode(errors="replace"))
            client.sendall(answer)
            if b" 200 " not in answer:
                client.close()
                continue
            server = socket.create_connection((host, int(port)))
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=carry, args=(one, other), daemon=True).start()

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", asked
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("ask", ASK)
def test_another_host_is_reached_through_the_proxy(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(FakeInference([tokens(5, 6)])) as (address, _), _proxy(address) as (proxy, asked):
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        assert ask("router.example.com:50051") == [5, 6]
    assert asked[0].startswith("CONNECT router.example.com:50051 ")


@pytest.mark.parametrize("ask", ASK)
def test_an_error_over_a_proxy_names_it_without_its_password(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = dead_port()
    monkeypatch.setenv("https_proxy", f"http://user:secret@{dead}")
    with pytest.raises(NoWorkers) as caught:
        ask("router.example.com:50051")
    message = f"router.example.com:50051 cannot be reached through the proxy {dead} ($https_proxy)"
    assert message in caught.value.message
    assert "secret" not in caught.value.message


def test_a_refusal_by_the_proxy_is_reported(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with _proxy(dead_port(), b"HTTP/1.1 403 Forbidden\r\n\r\n") as (proxy, _):
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        with pytest.raises(NoWorkers, match=f"through the proxy {proxy}.*403"):
            _asked("router.example.com:50051")


def test_a_host_in_no_proxy_is_reached_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(FakeInference([tokens(5)])) as (address, _), _proxy(address) as (proxy, asked):
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        monkeypatch.setenv("no_proxy", "example.invalid")
        with pytest.raises(NoWorkers) as caught:
            _asked("router.example.invalid:50051")
    assert asked == []
    assert "proxy" not in caught.value.message
    assert "cannot be resolved" in caught.value.message
