"""The process of this machine that listens at an address, for errors about a server that does not answer."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.address import is_loopback, split


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening process. `stopped`: by a signal, so that connections are accepted and never answered."""

    pid: int
    stopped: bool


def listener(address: str) -> Listener | None:
    """The process that listens at a loopback address; None for other addresses and users, or without psutil."""
    host, port = split(address)
    if not (is_loopback(host) and port.isdigit()):
        return None
    try:
        import psutil
    except ImportError:  # A dependency of nodes, not of the client alone
        return None
    try:
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and getattr(one.laddr, "port", 0) == int(port) and one.pid:
                return Listener(one.pid, psutil.Process(one.pid).status() == psutil.STATUS_STOPPED)
    except (psutil.Error, OSError):
        return None
    return None
