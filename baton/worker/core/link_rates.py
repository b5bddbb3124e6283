"""The rate of the link to each peer, by the first large writes to it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.protocol.link_rate import LARGE_BYTES, slow_link
from baton.protocol.session_messages import LinkMeasured
from baton.protocol.worker import WorkerInfo

WRITES = 3  # the first one also opens the peer's memory, and any may end while the loop does something else


@dataclass(slots=True, eq=False)
class _Peer:
    host: str
    writes: int = 0
    best: LinkMeasured | None = None


@dataclass(eq=False)
class LinkRates:
    """Takes the fastest of the first `WRITES` writes of `LARGE_BYTES` or more to each peer, once."""

    _peers: dict[str, _Peer] = field(default_factory=dict)

    def joined(self, agent: str, host: str) -> None:
        """A peer on that host has connected; its measurement starts over."""
        self._peers[agent] = _Peer(host)

    def left(self, agent: str) -> None:
        self._peers.pop(agent, None)

    def ended(self, agent: str, num_bytes: int, seconds: float) -> LinkMeasured | None:
        """A write has arrived; returns the peer's rate after the last write of the measurement."""
        peer = self._peers.get(agent)
        if peer is None or peer.writes == WRITES or num_bytes < LARGE_BYTES or seconds <= 0.0:
            return None
        this = LinkMeasured(agent, num_bytes, seconds)
        peer.writes += 1
        peer.best = this if peer.best is None else max(peer.best, this, key=lambda one: one.bytes_per_s)
        return peer.best if peer.writes == WRITES else None

    def sentence(self, own: WorkerInfo, measured: LinkMeasured) -> tuple[str, bool]:
        """The log line about it, and whether it is a warning."""
        host = self._peers[measured.agent].host
        gpus_of_one_host = own.device != "cpu" and bool(host) and host == own.host
        said = f"{measured.num_bytes >> 20} MiB to {measured.agent} in {1000 * measured.seconds:.1f} ms"
        warning = slow_link(own.name, measured.agent, measured.bytes_per_s, gpus_of_one_host)
        if warning:
            return f"{said}. {warning}", True
        return f"{said}, {measured.bytes_per_s / 1e9:.1f} GB/s", False
