"""Workers of several ranks for virtual clusters."""

from __future__ import annotations

from typing import Any

from baton.protocol.worker import RoleName


def any_ranks(seed: int) -> dict[str, Any]:
    """One or two ranks for each pool's workers, and one or two KV heads: a cluster's arguments."""
    ranks = {role: 1 + seed // 8 // 2**index % 2 for index, role in enumerate(RoleName)}
    return {"ranks": ranks, "num_kv_heads": 1 + seed // 64 % 2}
