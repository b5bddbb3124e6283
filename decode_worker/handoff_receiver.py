"""Reservations: pages held for KV that a prefill worker is about to write."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.engine.kv_pages import PagePool
from baton.engine.page_table import give_back_pages, take_pages
from baton.engine.sequence import Sequence
from baton.protocol.handoff import HandoffNotice, HandoffState, HandoffStep, Reservation, advance
from baton.protocol.messages import Reserve
from baton.protocol.prefix_hash import tenant_root


@dataclass(slots=True, eq=False)
class _Incoming:
    sequence: Sequence
    reservation: Reservation
    gateway: str
    state: HandoffState = HandoffState.RESERVED


@dataclass(eq=False)
class HandoffReceiver:
    """Every open reservation of a worker. Pages leave it in exactly two ways: `commit` or `release`.

    A cancelled reservation keeps its pages until `release`: the writer may not have drained yet, and a late write
    into a page with a new owner would be silent corruption.
    """

    pool: PagePool
    agent: str
    model_id: str
    share_prefixes: bool = False  # between tenants
    _open: dict[str, _Incoming] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def reservation_ids(self) -> tuple[str, ...]:
        return tuple(self._open)

    def reserve(self, order: Reserve, sequence: Sequence, headroom: int) -> Reservation | None:
        """Hold pages for all known tokens and `growth_tokens` more; None if they do not fit beside `headroom` pages
        for the growth of running sequences."""
        reservation_id, growth_tokens = order.reservation_id, order.growth_tokens
        if reservation_id in self._open:
            return self._open[reservation_id].reservation
        page_size, known = self.pool.page_size, len(sequence.tokens)
        growth = -(-(known + growth_tokens) // page_size) - -(-known // page_size)
        # A migrating sequence may arrive with its last token uncomputed: that token's page must not be shared.
        receiving = growth_tokens == 0
        sequence.score_until = 0  # Its source computes the prompt
        root = tenant_root(self.model_id, sequence.request.tenant, self.share_prefixes)
        if not take_pages(sequence, self.pool, root, reserve=headroom + growth, receiving=receiving):
            return None
        sequence.page_table.extend(self.pool.allocate(growth))
        cached_pages = sequence.cached // self.pool.page_size
        pages = tuple(sequence.page_table[cached_pages:])
        reservation = Reservation(
            reservation_id,
            sequence.request_id,
            self.agent,
            pages,
            tuple(self.pool.generation(page) for page in pages),
            cached_pages,
            len(sequence.tokens),
        )
        self._open[reservation_id] = _Incoming(sequence, reservation, order.gateway)
        return reservation

    def pages(self, reservation_id: str) -> tuple[int, ...]:
        """The pages that the source writes for an open reservation."""
        inbound = self._open.get(reservation_id)
        return inbound.reservation.page_ids if inbound is not None else ()

    def commit(self, notice: HandoffNotice) -> tuple[Sequence, str] | None:
        """The sequence whose KV has arrived, ready to decode, and its gateway; None if it is no longer needed.

        An unknown or cancelled reservation, one whose pages have a new owner, or a notice with impossible counts
        commits nothing.
        """
        inbound = self._open.get(notice.reservation_id)
        if inbound is None or inbound.state is HandoffState.ABORTED:
            return None
        if notice.generations != inbound.reservation.generations:
            return None
        num_tokens = len(inbound.sequence.tokens) + len(notice.new_tokens)
        room = len(inbound.sequence.page_table) * self.pool.page_size
        if not 0 < notice.computed <= min(num_tokens, room):
            return None
        for step in (HandoffStep.WRITE, HandoffStep.DELIVER, HandoffStep.COMMIT):
            inbound.state = advance(inbound.state, step)
        del self._open[notice.reservation_id]
        sequence = inbound.sequence
        sequence.tokens += notice.new_tokens
        sequence.computed = notice.computed
        return sequence, inbound.gateway

    def adopt(self, request_id: str, gateway: str) -> bool:
        """Another gateway gets the tokens of the request; returns whether there is a reservation for it."""
        inbounds = [inbound for inbound in self._open.values() if inbound.sequence.request_id == request_id]
        for inbound in inbounds:
            inbound.gateway = gateway
        return bool(inbounds)

    def cancel(self, request_id: str) -> None:
        """Never commit this request's reservations; `release` must still follow."""
        for inbound in self._open.values():
            if inbound.sequence.request_id == request_id and inbound.state is HandoffState.RESERVED:
                inbound.state = advance(inbound.state, HandoffStep.ABORT)

    def release_all(self) -> None:
        """Free the pages of every reservation: no write to us is possible any more."""
        for reservation_id in self.reservation_ids:
            self.release(reservation_id)

    def release(self, reservation_id: str) -> None:
        """Free the pages: the writer has drained or is dead. Unknown ids were committed or released before."""
        inbound = self._open.pop(reservation_id, None)
        if inbound is not None:
            give_back_pages(inbound.sequence, self.pool)
