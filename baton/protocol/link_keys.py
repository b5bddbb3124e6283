"""The CURVE keys of the link between router and workers, created once per cluster.

The router has a key pair, and all workers share another. Each side has the other's public key and accepts no other key.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RouterKeys:
    """The router's keys, in ZeroMQ's encoding Z85."""

    public: str
    secret: str = field(repr=False)
    worker_public: str


@dataclass(frozen=True, slots=True)
class WorkerKeys:
    """The workers' keys, in Z85."""

    public: str
    secret: str = field(repr=False)
    router_public: str


@dataclass(frozen=True, slots=True)
class LinkKeys:
    """The keys of both sides, for the process that starts them."""

    router: RouterKeys
    worker: WorkerKeys
