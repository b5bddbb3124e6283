"""Joins and splits addresses, which are texts of a host and a port. IPv6 hosts have brackets before a port."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

_SCHEME = re.compile(r"^(dns|ipv4|ipv6|tcp):(//[^/]*/)?(//)?")  # "dns:///host:port", "tcp://host:port"
_LOCAL_ENDINGS = (".localhost", ".local")


def join(host: str, port: int | str) -> str:
    """ "host:port", with brackets around an IPv6 host: "[::1]:50051"."""
    bare = bare_host(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def split(address: str) -> tuple[str, str]:
    """Host (without brackets) and port of "host:port"; the port is "" if there is none."""
    address = _SCHEME.sub("", address)
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        return host, rest.removeprefix(":")
    if address.count(":") > 1:  # an IPv6 address alone
        return address, ""
    host, _, port = address.partition(":")
    return host, port


def bare_host(host: str) -> str:
    """The host without brackets."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def is_ipv6(host: str) -> bool:
    """Whether the host is an IPv6 address."""
    return ":" in bare_host(host)


def is_wildcard(host: str) -> bool:
    """Whether a server that listens there listens on every address of its machine."""
    address = _ip(host)
    return address is not None and address.is_unspecified


def reachable(address: str, own: str) -> str:
    """The address at which clients reach a server that listens at `address`: `own` replaces a wildcard."""
    host, port = split(address)
    return join(own, port) if is_wildcard(host) else address


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on this host: a loopback address or "localhost"."""
    address = _ip(host)
    return host == "localhost" if address is None else address.is_loopback


def is_private(host: str) -> bool:
    """Whether the host cannot be reached from the internet.

    True for loopback, private and link-local addresses, for names that end in .localhost or .local, and for names
    without a dot, which only a local network resolves.
    """
    address = _ip(host)
    if address is not None:
        return not address.is_global
    name = bare_host(host).rstrip(".").lower()
    return "." not in name or name.endswith(_LOCAL_ENDINGS)


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(bare_host(host))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
