"""The CURVE keys of the link between router and workers, created for the lifetime of a cluster.

The router has its own pair, all workers share one; each side knows the other's public key and accepts no other.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RouterKeys:
    """The router's keys, in Z85, ZeroMQ's encoding."""

    public: str
    secret: str = field(repr=False)
    worker_public: str


@dataclass(frozen=True, slots=True)
class WorkerKeys:
    """The workers' keys."""

    public: str
    secret: str = field(repr=False)
    router_public: str


@dataclass(frozen=True, slots=True)
class LinkKeys:
    """Both sides' keys, for the process that starts them."""

    router: RouterKeys
    worker: WorkerKeys
