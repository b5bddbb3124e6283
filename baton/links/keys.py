"""Derives the keys of links from a cluster's secret, and the identity under which a process connects."""

from __future__ import annotations

import secrets
from functools import lru_cache
from hashlib import blake2b

import zmq
from zmq.utils import z85

from baton.protocol.link_keys import ROUTER, PeerKeys

ONE_WAY = "#one-way"  # Suffix of the identity of a connection to which nothing is sent
_KEY_BYTES = 32


def new_secret() -> str:
    """The secret of a new cluster."""
    return secrets.token_hex(_KEY_BYTES)


def peer_keys(cluster_secret: str, name: str) -> PeerKeys:
    """The keys of the process `name`, for this process alone."""
    secret = _secret_key(cluster_secret, name)
    return PeerKeys(zmq.curve_public(secret).decode(), secret.decode(), public_key(cluster_secret, ROUTER))


@lru_cache(4096)  # It takes 30 to 50 µs, and the router needs it for each frame
def public_key(cluster_secret: str, name: str) -> str:
    """The public key of the process `name`."""
    return zmq.curve_public(_secret_key(cluster_secret, name)).decode()


def _secret_key(cluster_secret: str, name: str) -> bytes:
    key = bytes.fromhex(cluster_secret)
    return z85.encode(blake2b(name.encode(), digest_size=_KEY_BYTES, key=key, person=b"baton link").digest())


def link_identity(name: str, keys: PeerKeys | None, server_key: str, one_way: bool = False) -> bytes:
    """The identity of a process's socket at a server: its name and, with keys, a tag that only these two can compute.

    A connection takes over the earlier connection of its identity, so no process may learn another's.
    """
    identity = name
    if keys is not None:
        tag = blake2b(server_key.encode(), digest_size=16, key=keys.secret.encode(), person=b"baton identity")
        identity += "#" + tag.hexdigest()
    return (identity + ONE_WAY if one_way else identity).encode()


def identity_name(identity: bytes) -> str:
    """The name in an identity; raises `UnicodeDecodeError` for invalid bytes."""
    return identity.decode().partition("#")[0]
