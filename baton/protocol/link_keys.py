"""The CURVE keys of the link between router and workers: made when a cluster starts, and gone with it.

The router has a pair of its own, all workers share one; each side knows the other's public key and accepts no other.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RouterKeys:
    """What the router knows. Keys are in Z85, as ZeroMQ writes them."""

    public: str
    secret: str = field(repr=False)
    worker_public: str


@dataclass(frozen=True, slots=True)
class WorkerKeys:
    """What every worker knows."""

    public: str
    secret: str = field(repr=False)
    router_public: str


@dataclass(frozen=True, slots=True)
class LinkKeys:
    """Both sides' keys, for whoever starts them."""

    router: RouterKeys
    worker: WorkerKeys
