"""Checks before `up` starts anything, for errors that would otherwise appear half a minute later."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from itertools import combinations

import psutil

from baton.client.listener import listener
from baton.config.placement import gateways_here
from baton.config.schema import BatonConfig
from baton.deploy.local_ray import loopback
from baton.deploy.running import state_file
from baton.protocol.address import bare_host, is_ipv6, is_loopback, join
from baton.protocol.errors import ConfigError


def check_start(config: BatonConfig) -> None:
    """Raise `ConfigError` when the note cannot be written or an address cannot be listened on."""
    check_note()
    check_addresses(config)


def check_note() -> None:
    """Raise `ConfigError` when no file can be written to the note's folder."""
    folder = state_file().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(b" " * 4096)
    except OSError as error:
        raise ConfigError(
            f"The cluster cannot be noted in {folder}: {_words(error)}. Set BATON_HOME to a folder that can be written."
        ) from None


def check_addresses(config: BatonConfig) -> None:
    """Raise `ConfigError` when router and gateways of this node cannot listen on their configured addresses."""
    gateway, router = config.gateway, config.router
    listening = [("router.admin_host", router.admin_host, "router.admin_port", router.admin_port)]
    if router.admin_http_port != "off":
        listening.append(("router.admin_host", router.admin_host, "router.admin_http_port", router.admin_http_port))
    if gateways_here(config):
        listening.insert(0, ("gateway.host", gateway.host, "gateway.port", gateway.port))
        if gateway.http_port != "off":
            listening.insert(1, ("gateway.host", gateway.host, "gateway.http_port", gateway.http_port))
        if gateway.metrics_port != "off":
            listening.append(("gateway.host", gateway.host, "gateway.metrics_port", gateway.metrics_port))
    for (_, host, key, port), (_, other_host, other_key, other) in combinations(listening, 2):
        if port and port == other and bare_host(host) == bare_host(other_host):
            raise ConfigError(f"{key} and {other_key} are both {port}: each needs a port of its own.")
    for host_key, host, port_key, port in listening:
        failure = _bind_failure(bare_host(host), port)
        if failure is None:
            continue
        if failure.errno == errno.EADDRINUSE:
            process = listener(join("127.0.0.1", port))
            by = f" by pid {process.pid}" if process else ""
            raise ConfigError(
                f"{port_key} is {port}, and {join(host, port)} is in use{by}: choose another port, or 0 for any."
            )
        if failure.errno == errno.EACCES:
            raise ConfigError(f"{port_key} is {port}, which this user may not listen on: choose one above 1023.")
        raise ConfigError(f"{host_key} is {host!r}, which is not an address of this machine: {_words(failure)}.")


def ray_host() -> str:
    """The address of this machine at which a Ray of its own starts.

    IPv4's loopback; where there is no IPv4, an IPv6 address other than loopback, which Ray takes for 127.0.0.1. Raises
    `ConfigError` when there is neither.
    """
    if not is_ipv6(loopback()):
        return loopback()
    for interface in psutil.net_if_addrs().values():
        for entry in interface:
            if entry.family is socket.AF_INET6 and "%" not in entry.address and not is_loopback(entry.address):
                return entry.address
    raise ConfigError(
        "This machine has no IPv4 address, and its only IPv6 address is loopback, with which Ray does not start: add "
        "an address, for example with `ip addr add fd00::1/64 dev lo`."
    )


def _bind_failure(host: str, port: int) -> OSError | None:
    """Why none of the host's addresses can be bound; None when one can."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        return error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
    failure: OSError | None = None
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return None
        except OSError as error:
            failure = error
    return failure


def _words(error: OSError) -> str:
    return (error.strerror or os.strerror(error.errno or errno.EIO)).lower()
