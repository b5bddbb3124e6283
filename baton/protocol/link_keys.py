"""The CURVE keys of the links: one secret of the cluster, and a key pair of its own for each process.

Each pair is derived from the secret and the process's name (`baton.links.keys`), so a restarted router accepts the same
peers. Only the router has the secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ROUTER = "router"  # The name of the router's own key pair


@dataclass(frozen=True, slots=True)
class PeerKeys:
    """The key pair of one process and the router's public key, in ZeroMQ's encoding Z85.

    No handshake sends the router's public key, and none succeeds without it, so it is not shown either.
    """

    public: str
    secret: str = field(repr=False)
    router_public: str = field(repr=False)
