"""What a request did when: queue, prefill, handoff, decode, from the moments that the router saw. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.handoff import HandoffReport
from baton.protocol.latency import Latency
from baton.router.core.completion import Completion
from baton.router.core.live_request import LiveRequest

QUEUE, PREFILL, HANDOFF, DECODE = "queue", "prefill", "handoff", "decode"


@dataclass(frozen=True, slots=True)
class RequestPhase:
    """A phase, where it ran ("": in the router), and when, on the router's clock; it runs while `end_s` is None."""

    name: str
    worker: str
    start_s: float
    end_s: float | None


def request_phases(
    latency: Latency, prefill_worker: str, decode_worker: str, handoff: HandoffReport | None, ended_s: float | None
) -> list[RequestPhase]:
    """The phases so far, in their order and without gaps. The first attempt begins them, and retries extend them.

    The handoff ends when the pages are at the decode worker. While that is open, the request is in its handoff.
    """
    if not prefill_worker and decode_worker:  # Kept by its worker over a restart of the router
        return [RequestPhase(DECODE, decode_worker, latency.arrival_s, ended_s)]
    decoding_s = None
    if latency.first_token_s is not None and (handoff is not None or decode_worker == prefill_worker):
        decoding_s = latency.first_token_s + (handoff.exposed_s if handoff is not None else 0.0)
    starts = (
        (QUEUE, "", latency.arrival_s),
        (PREFILL, prefill_worker, latency.routed_s),
        (HANDOFF, decode_worker, latency.first_token_s if decode_worker != prefill_worker else None),
        (DECODE, decode_worker, decoding_s),
    )
    begun = [(name, worker, start_s) for name, worker, start_s in starts if start_s is not None]
    if ended_s is not None:
        begun = [(name, worker, min(start_s, ended_s)) for name, worker, start_s in begun]
    ends = [*(start_s for _, _, start_s in begun[1:]), ended_s]
    return [RequestPhase(*one, end_s) for one, end_s in zip(begun, ends, strict=True)]


def live_phases(live: LiveRequest) -> list[RequestPhase]:
    """The phases of a request that runs."""
    return request_phases(live.latency, live.prefill_worker, live.decode_worker, live.report, None)


def ended_phases(ended: Completion, ended_s: float) -> list[RequestPhase]:
    """The phases of a request that ended at `ended_s`."""
    return request_phases(ended.latency, ended.prefill_worker, ended.decode_worker, ended.handoff, ended_s)
