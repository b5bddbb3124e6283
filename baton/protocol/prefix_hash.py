"""The hash chain that identifies a page's content: parent hash and tokens of the page, from a root of model and tenant.

Equal hashes mean equal KV, because the chain covers every token before the page. Router and workers compute the same
chain, so they exchange only hashes to match prefixes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Annotated

from baton.protocol.bounds import Length

HASH_BYTES = 16
KEY_BYTES = 8
KEY_SHIFT = 4  # 60 bits fit Python's small integers; a collision costs a wrong prediction, never a wrong token
PageKeys = Annotated[tuple[int, ...], Length(1 << 22)]  # See `page_keys`


def root_hash(model_id: str, salt: str = "") -> bytes:
    """The parent of every first page. Different models or salts never share a page."""
    return blake2b(f"{model_id}\0{salt}".encode(), digest_size=HASH_BYTES).digest()


def tenant_root(model_id: str, tenant: str, shared: bool) -> bytes:
    """The root of a request's chain, salted with its tenant unless prefixes are `shared`.

    Without sharing a prompt that another tenant sent before is recomputed, so that the time to the first token does not
    reveal it.
    """
    return root_hash(model_id, "" if shared else tenant)


def page_hashes(tokens: Sequence[int], page_size: int, root: bytes, known: Sequence[bytes] = ()) -> list[bytes]:
    """One hash per full page of `tokens`; `known` has the hashes of the leading pages."""
    start = len(known) * page_size
    return [*known, *next_page_hashes(tokens[start:], page_size, known[-1] if known else root)]


def next_page_hashes(tokens: Sequence[int], page_size: int, parent: bytes) -> list[bytes]:
    """The hashes of the full pages of `tokens`, which follow the page whose hash is `parent`."""
    hashes: list[bytes] = []
    ids = array("i", tokens).tobytes()
    page_bytes = 4 * page_size
    for offset in range(0, len(ids) - page_bytes + 1, page_bytes):
        parent = blake2b(ids[offset : offset + page_bytes], digest_size=HASH_BYTES, key=parent).digest()
        hashes.append(parent)
    return hashes


def page_key(page_hash: bytes) -> int:
    """The short form of a page hash."""
    return int.from_bytes(page_hash[:KEY_BYTES], "little") >> KEY_SHIFT


def page_keys(hashes: Iterable[bytes]) -> tuple[int, ...]:
    """The short forms of a chain."""
    read = int.from_bytes
    return tuple([read(page_hash[:KEY_BYTES], "little") >> KEY_SHIFT for page_hash in hashes])
