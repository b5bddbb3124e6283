"""Keeps placement's view of the workers equal to what the live requests hold there. Pure.

A diff: what a request held at the last look against what its state says now. So nothing is booked that the state does
not say, and nothing is forgotten that it no longer says.
"""

from __future__ import annotations

from baton.router.core.live_request import Hold, LiveRequest
from baton.router.policy.cluster_state import ClusterState

_NOTHING = Hold(False, False, False, "")


def update(request: LiveRequest, state: ClusterState, now: float) -> None:
    """Book what has changed since the last call."""
    before, after = request.booked, request.holds()
    if before == after:
        return
    request.booked = after
    for worker, hold in before.items():
        _remove(request, worker, hold, after.get(worker, _NOTHING), state, now)
    for worker, hold in after.items():
        _add(request, worker, before.get(worker, _NOTHING), hold, state, now)


def _remove(request: LiveRequest, worker: str, before: Hold, after: Hold, state: ClusterState, now: float) -> None:
    if before.prompt and not after.prompt:
        state.unassign(worker, request.request_id, now)
    if before.sequence and not after.sequence:
        state.forget(worker, request.request_id)
    if before.reservation_id and before.reservation_id != after.reservation_id:
        state.unreserve(worker, before.reservation_id)


def _add(request: LiveRequest, worker: str, before: Hold, after: Hold, state: ClusterState, now: float) -> None:
    if after.prompt and not before.prompt:
        state.assign(worker, request.request_id, request.num_tokens, request.page_keys, now)
    if after.sequence and not before.sequence and request.sequence is not None:
        state.expect(worker, request.request_id, request.sequence)
    if after.decoding and request.sequence is not None:
        request.sequence.decodes_on = worker
    if after.reservation_id and before.reservation_id != after.reservation_id and request.handoff is not None:
        state.reserve(worker, after.reservation_id, request.handoff.reserved_tokens)
