"""The HTTP proxy that gRPC uses for an address.

gRPC takes the first of $grpc_proxy, $https_proxy and $http_proxy that is set. It connects directly to the addresses
that $no_grpc_proxy or else $no_proxy lists: ends of names, addresses, and networks such as 10.0.0.0/8. Baton adds one
rule: private addresses (`baton.protocol.address.is_private`) are always reached directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

from baton.protocol.address import is_private, split

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


def avoids_proxies(address: str) -> bool:
    """Whether an address is always reached directly, regardless of the environment."""
    return address.startswith("unix") or is_private(split(address)[0])


def proxy_of(address: str, environment: Mapping[str, str]) -> str:
    """An address's proxy and its variable, such as "proxy.corp:3128 ($https_proxy)", without credentials; or ""."""
    variable = next((name for name in _PROXIES if name in environment), "")
    proxy = environment.get(variable, "").partition("://")[2].rstrip("/").rpartition("@")[2]
    excepted = next((environment[name] for name in _EXCEPTIONS if name in environment), "")
    host = split(address)[0].lower()
    if not proxy or avoids_proxies(address) or any(_covers(entry.strip(), host) for entry in excepted.split(",")):
        return ""
    return f"{proxy} (${variable})"


def _covers(entry: str, host: str) -> bool:
    if not entry:
        return False
    try:
        return ip_address(host) in ip_network(entry, strict=False)
    except ValueError:
        return host.endswith(entry.lower())
