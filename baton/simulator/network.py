"""The network between workers: each rank has a link out and a link in, which serve one transfer after another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from baton.protocol.head_slices import Piece, pieces
from baton.simulator.events import Action, Events


@lru_cache(maxsize=256)
def rank_pairs(num_kv_heads: int, source_ranks: int, target_ranks: int) -> tuple[tuple[int, Piece], ...]:
    """Every piece of a page that travels between two workers, each with the rank that sends it."""
    return tuple(
        (rank, piece)
        for rank in range(source_ranks)
        for piece in pieces(num_kv_heads, source_ranks, rank, target_ranks)
    )


@dataclass(eq=False)
class Network:
    """Messages take `latency_s`, pages also their bytes over `bandwidth_bytes_s`, one transfer after another."""

    events: Events
    bandwidth_bytes_s: float
    latency_s: float
    bytes_moved: int = 0
    _free_s: dict[str, float] = field(default_factory=dict)  # when a link (direction and worker) is free again

    def send(self, action: Action) -> None:
        """Deliver a message."""
        self.events.after(self.latency_s, action)

    def transfer(self, parts: Iterable[tuple[str, str, int]], action: Action) -> float:
        """Move the parts of pages, (from, to, bytes) each, side by side; `action` runs when the last one has arrived.

        Returns how long that takes, waiting included.
        """
        arrival_s = max(self.reserve(*part) for part in parts)
        self.events.at(arrival_s, action)
        return arrival_s - self.events.now

    def reserve(self, source: str, target: str, num_bytes: int) -> float:
        """Take both links for a transfer. Returns the time of its arrival."""
        seconds = num_bytes / self.bandwidth_bytes_s
        sent_s = max(self.events.now, self._free_s.get(f"out {source}", 0.0)) + seconds
        self._free_s[f"out {source}"] = sent_s  # a busy target does not hold up what goes to others
        received_s = max(sent_s, self._free_s.get(f"in {target}", 0.0) + seconds)
        self._free_s[f"in {target}"] = received_s
        self.bytes_moved += num_bytes
        return received_s + self.latency_s
