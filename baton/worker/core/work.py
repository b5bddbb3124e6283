"""Decodes the work of an order. Pure: the router passes it on unread, so it is checked here."""

from __future__ import annotations

from baton.protocol.codec import work_of
from baton.protocol.errors import InvalidRequest
from baton.protocol.messages import Prefill, RequestFailed, Reserve, Work
from baton.worker.core.role import Send
from baton.worker.core.state import WorkerState


def accepted_work(order: Prefill | Reserve, state: WorkerState) -> Work:
    """The work of an order; raises `InvalidRequest` if the model cannot compute it."""
    work = work_of(order.work)
    if isinstance(order.work, Work):
        return work  # It has crossed no link
    request, emitted = work.request, work.emitted
    if request.request_id != order.request_id:
        raise InvalidRequest(f"The order for {order.request_id!r} has the work of {request.request_id!r}.")
    request.validate(state.vocab_size, state.context_tokens)
    if len(request.prompt) + len(emitted) >= state.context_tokens:
        raise InvalidRequest(f"The {len(emitted)} output tokens leave no room in a context of {state.context_tokens}.")
    if emitted and not 0 <= min(emitted) <= max(emitted) < state.vocab_size:
        raise InvalidRequest(f"An output token is outside the vocabulary of {state.vocab_size}.")
    return work


def not_held(request_id: str) -> Send:
    """The answer to an order about a sequence that this worker does not hold."""
    return Send(RequestFailed(request_id, "NotFound", "The sequence is not held any more."))
