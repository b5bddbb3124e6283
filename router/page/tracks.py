"""Requests as the page shows them: a row of the list, and a track, which is where a request was when. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from baton.router.core.completion import Completion
from baton.router.core.live_request import LiveRequest
from baton.router.request_phases import RequestPhase, ended_phases, live_phases

MAX_TRACKS = 96  # In one snapshot
LOOKED_AT = 512  # Live requests that are looked at for one, the newest


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that has ended, and when."""

    completion: Completion
    at_s: float


def tracks(live: Iterable[LiveRequest], ended: Iterable[Ended], since_s: float, now: float) -> list[list[Any]]:
    """The tracks of requests whose phase changed after `since_s`; both kinds come newest first."""
    found: list[list[Any]] = []
    for one in ended:
        if one.at_s <= since_s or len(found) == MAX_TRACKS:
            break
        phases = ended_phases(one.completion, one.at_s)
        found.append(_track(one.completion.request_id, phases, now, "failed" if one.completion.error else "ended"))
    for request in islice(live, LOOKED_AT):
        if len(found) == MAX_TRACKS:
            break
        if request.closed or request.pinned:
            continue
        phases = live_phases(request)
        if phases[-1].start_s > since_s:
            found.append(_track(request.request_id, phases, now, "live"))
    return found


def _track(request_id: str, phases: list[RequestPhase], now: float, state: str) -> list[Any]:
    """[id, state, [[phase, worker, milliseconds ago that it began], …], milliseconds ago that it ended or null]"""
    end_s = phases[-1].end_s
    steps = [[one.name, one.worker, round(1000 * (now - one.start_s))] for one in phases]
    return [request_id, state, steps, None if end_s is None else round(1000 * (now - end_s))]


def request_rows(live: Iterable[LiveRequest], ended: Iterable[Ended], count: int, now: float) -> list[dict[str, Any]]:
    """The newest requests, half of them live ones if there are so many."""
    running = list(islice((one for one in live if not (one.closed or one.pinned)), count // 2))
    rows = [_live_row(one, now) for one in running]
    return rows + [_ended_row(one, now) for one in islice(ended, count - len(rows))]


def _live_row(live: LiveRequest, now: float) -> dict[str, Any]:
    return {
        "id": live.request_id,
        "state": live.phase.value,
        "prefill": live.prefill_worker,
        "decode": live.decode_worker if live.prefill_worker or live.adopted else "",
        "prompt_tokens": live.submit.num_prompt_tokens,
        "output_tokens": live.output_tokens,
        "ttft_ms": _ms(live.latency.ttft_s),
        "tpot_ms": None,
        "seconds": round(now - live.latency.arrival_s, 2),
        "ended": False,
        "message": "",
    }


def _ended_row(one: Ended, now: float) -> dict[str, Any]:
    ended = one.completion
    return {
        "id": ended.request_id,
        "state": ended.reason.value if ended.reason is not None else type(ended.error).__name__,
        "prefill": ended.prefill_worker,
        "decode": ended.decode_worker,
        "prompt_tokens": ended.prompt_tokens,
        "output_tokens": ended.output_tokens,
        "ttft_ms": _ms(ended.latency.ttft_s),
        "tpot_ms": _ms(ended.latency.tpot_s),
        "seconds": round(one.at_s - ended.latency.arrival_s, 2),
        "ended": True,
        "message": ended.error.message if ended.error is not None else "",
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 1)
