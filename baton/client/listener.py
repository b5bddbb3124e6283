"""Which process of this machine listens at an address: for errors about one that does not answer."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.address import is_loopback, split


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that listens; `stopped` by a signal, it accepts connections and does nothing."""

    pid: int
    stopped: bool


def listener(address: str) -> Listener | None:
    """The process that listens at a loopback address; None elsewhere, for one of another user, or without psutil."""
    host, port = split(address)
    if not (is_loopback(host) and port.isdigit()):
        return None
    try:
        import psutil
    except ImportError:  # installed where nodes run, not with the client alone
        return None
    try:
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and getattr(one.laddr, "port", 0) == int(port) and one.pid:
                return Listener(one.pid, psutil.Process(one.pid).status() == psutil.STATUS_STOPPED)
    except (psutil.Error, OSError):
        return None
    return None
