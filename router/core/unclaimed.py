"""Sequences that workers kept over a router restart, until their clients resume. Pure.

A client claims its sequence by asking for the same request again: same id and same digest, which names the tenant too.
A sequence that is claimed by another request, held twice, no longer needed or not claimed in time is cancelled.
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
    """Each sequence once, by request id. The caller sends the orders that methods return."""

    claim_within_s: float
    most: int = MAX_UNCLAIMED
    _sequences: dict[str, _Unclaimed] = field(default_factory=dict)  # oldest first

    def __len__(self) -> int:
        return len(self._sequences)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sequences

    def offer(self, worker: str, held: Iterable[HeldSequence], now: float) -> list[Tell]:
        """A worker's kept sequences. If two hold the same one, the one that is further along continues."""
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
        """The worker that continues the request after `num_emitted` tokens; None if it must be computed again."""
        known = self._sequences.pop(request.request_id, None)
        if known is None:
            return None, []
        if known.held.digest != request.digest or known.held.num_tokens < num_emitted:
            return None, [known.order]
        return known.worker, []

    def drop(self, request_id: str) -> list[Tell]:
        """The request continues elsewhere."""
        known = self._sequences.pop(request_id, None)
        return [known.order] if known is not None else []

    def expired(self, now: float) -> list[Tell]:
        """Cancel sequences that were not claimed in time."""
        late = list(takewhile(lambda one: now >= one.until_s, self._sequences.values()))
        return [order for one in late for order in self.drop(one.held.request_id)]

    def lost(self, worker: str) -> None:
        """Forget the sequences of a lost worker."""
        gone = [request_id for request_id, one in self._sequences.items() if one.worker == worker]
        for request_id in gone:
            del self._sequences[request_id]

    def on(self, worker: str) -> dict[str, HeldSequence]:
        """The worker's unclaimed sequences, by request id."""
        return {request_id: one.held for request_id, one in self._sequences.items() if one.worker == worker}
