"""Sequences that workers kept over a router restart, until their gateways claim them. Pure.

A gateway claims a sequence by submitting the request again: same id and same digest, which covers the tenant too.
A sequence that is claimed by another request, held twice, no longer needed or not claimed in time is cancelled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile

from baton.protocol.gateway_messages import Submit
from baton.protocol.messages import Cancel
from baton.protocol.session_messages import DetachedSequence
from baton.router.core.commands import SendToWorker

MAX_ORPHANS = 1 << 16


@dataclass(frozen=True, slots=True)
class _Orphan:
    worker: str
    held: DetachedSequence
    until_s: float

    @property
    def order(self) -> SendToWorker:
        return SendToWorker(self.worker, Cancel(self.held.request_id))


@dataclass(eq=False)
class Orphans:
    """Each sequence once, by request id. The caller sends the orders that methods return."""

    claim_within_s: float
    most: int = MAX_ORPHANS
    _sequences: dict[str, _Orphan] = field(default_factory=dict)  # oldest first

    def __len__(self) -> int:
        return len(self._sequences)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sequences

    def offer(self, worker: str, held: Iterable[DetachedSequence], now: float) -> list[SendToWorker]:
        """A worker's kept sequences. If two hold the same one, the one that is further along continues."""
        orders = []
        for sequence in held:
            fresh = _Orphan(worker, sequence, now + self.claim_within_s)
            known = self._sequences.get(sequence.request_id)
            unwanted = not self.claim_within_s or (known is None and len(self) >= self.most)
            if unwanted or (known is not None and known.held.num_tokens >= sequence.num_tokens):
                orders.append(fresh.order)
            else:
                orders += self.drop(sequence.request_id)
                self._sequences[sequence.request_id] = fresh
        return orders

    def claim(self, submit: Submit) -> tuple[tuple[str, int] | None, list[SendToWorker]]:
        """The worker that continues the request, and the output tokens that it had when it registered.

        None if it must be computed again.
        """
        known = self._sequences.pop(submit.request_id, None)
        if known is None:
            return None, []
        if known.held.digest != submit.digest:
            return None, [known.order]
        return (known.worker, known.held.num_tokens), []

    def drop(self, request_id: str) -> list[SendToWorker]:
        """The request continues elsewhere."""
        known = self._sequences.pop(request_id, None)
        return [known.order] if known is not None else []

    def expired(self, now: float) -> list[SendToWorker]:
        """Cancel sequences that were not claimed in time."""
        late = list(takewhile(lambda one: now >= one.until_s, self._sequences.values()))
        return [order for one in late for order in self.drop(one.held.request_id)]

    def lost(self, worker: str) -> None:
        """Forget the sequences of a lost worker."""
        gone = [request_id for request_id, one in self._sequences.items() if one.worker == worker]
        for request_id in gone:
            del self._sequences[request_id]

    def on(self, worker: str) -> dict[str, DetachedSequence]:
        """The worker's unclaimed sequences, by request id."""
        return {request_id: one.held for request_id, one in self._sequences.items() if one.worker == worker}
