"""Sequences that workers kept when their router was gone, until their clients come back for them. Pure.

A client claims its sequence by asking for the same request again: same id and same digest, which names the tenant too.
What is claimed by another request, held twice, of no use any more or not asked for in time, is cancelled at its worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile

from baton.protocol.messages import Cancel, HeldSequence
from baton.protocol.request import Request
from baton.router.core.commands import Tell

MAX_UNCLAIMED = 1 << 16


@dataclass(frozen=True, slots=True)
class _Unclaimed:
    worker: str
    held: HeldSequence
    until_s: float

    @property
    def order(self) -> Tell:
        return Tell(self.worker, Cancel(self.held.request_id))


@dataclass(eq=False)
class Unclaimed:
    """Each sequence once, by request id. The orders that methods return have to be sent."""

    claim_within_s: float
    most: int = MAX_UNCLAIMED
    _sequences: dict[str, _Unclaimed] = field(default_factory=dict)  # oldest first

    def __len__(self) -> int:
        return len(self._sequences)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sequences

    def offer(self, worker: str, held: Iterable[HeldSequence], now: float) -> list[Tell]:
        """What a worker has kept. Of two that hold the same sequence, the one that is further goes on."""
        orders = []
        for sequence in held:
            fresh = _Unclaimed(worker, sequence, now + self.claim_within_s)
            known = self._sequences.get(sequence.request_id)
            unwanted = not self.claim_within_s or (known is None and len(self) >= self.most)
            if unwanted or (known is not None and known.held.num_tokens >= sequence.num_tokens):
                orders.append(fresh.order)
            else:
                orders += self.drop(sequence.request_id)
                self._sequences[sequence.request_id] = fresh
        return orders

    def claim(self, request: Request, num_emitted: int) -> tuple[str | None, list[Tell]]:
        """The worker that goes on with the request after so many tokens; None where it must be computed again."""
        known = self._sequences.pop(request.request_id, None)
        if known is None:
            return None, []
        if known.held.digest != request.digest or known.held.num_tokens < num_emitted:
            return None, [known.order]
        return known.worker, []

    def drop(self, request_id: str) -> list[Tell]:
        """The request goes on elsewhere."""
        known = self._sequences.pop(request_id, None)
        return [known.order] if known is not None else []

    def expired(self, now: float) -> list[Tell]:
        """Nobody has come for these."""
        late = list(takewhile(lambda one: now >= one.until_s, self._sequences.values()))
        return [order for one in late for order in self.drop(one.held.request_id)]

    def lost(self, worker: str) -> None:
        """What the worker held is gone with it."""
        gone = [request_id for request_id, one in self._sequences.items() if one.worker == worker]
        for request_id in gone:
            del self._sequences[request_id]

    def on(self, worker: str) -> dict[str, HeldSequence]:
        """What the worker holds, by request id."""
        return {request_id: one.held for request_id, one in self._sequences.items() if one.worker == worker}
