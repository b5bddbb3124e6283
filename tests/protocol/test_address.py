"""Joining and splitting hosts and ports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.protocol.address import is_ipv6, is_loopback, is_private, is_wildcard, join, reachable, split

hosts = st.one_of(st.ip_addresses().map(str), st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{2,5}){0,2}", fullmatch=True))
ports = st.integers(0, 65535)


@given(hosts, ports)
def test_a_joined_address_splits_into_its_host_and_port(host: str, port: int) -> None:
    assert split(join(host, port)) == (host, str(port))
    assert join(*split(join(host, port))) == join(host, port)


@given(st.ip_addresses(v=6).map(str), ports)
def test_a_host_may_have_its_brackets_already(host: str, port: int) -> None:
    assert join(f"[{host}]", port) == join(host, port) == f"[{host}]:{port}"
    assert is_ipv6(f"[{host}]")
    assert is_private(f"[{host}]") == is_private(host)


@given(hosts, ports)
def test_a_scheme_before_the_address_changes_nothing(host: str, port: int) -> None:
    for scheme in ("dns:///", "dns://8.8.8.8/", "dns:", "tcp://"):
        assert split(scheme + join(host, port)) == (host, str(port))


@pytest.mark.parametrize(
    ("address", "found"),
    [("0.0.0.0:5", "10.1.2.3:5"), ("[::]:5", "10.1.2.3:5"), ("[::1]:5", "[::1]:5"), ("host:5", "host:5")],
)
def test_a_wildcard_is_reached_at_the_machines_own_address(address: str, found: str) -> None:
    assert reachable(address, "10.1.2.3") == found


def test_loopback_private_and_public_addresses_are_distinguished() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "::1", "[::1]", "localhost", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("10.0.0.1", "::", "0.0.0.0", "example.com", "")))
    assert all(map(is_wildcard, ("0.0.0.0", "::", "[::]")))
    assert not any(map(is_wildcard, ("127.0.0.1", "host")))
