"""Requests as the page shows them: a row of the list, and a track, which is where a request was when. Pure.

Where more requests end than the page can show moving, it shows every second one, or every fourth, and so on: the same
ones from arrival to end, by a hash of their ids that the page computes, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any
from zlib import crc32

from baton.router.core.completion import Completion
from baton.router.core.live_request import LiveRequest
from baton.router.request_phases import RequestPhase, ended_phases, live_phases

TRACKS_PER_S = 64  # That the page shows, about
MAX_TRACKS = 256  # In one snapshot
LOOKED_AT = 4096  # Live requests that are looked at for one, the newest


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that has ended, and when."""

    completion: Completion
    at_s: float


def spacing(requests_per_s: float) -> int:
    """Of how many requests one is shown: a power of two, so that those that are shown at 8 are shown at 4, too."""
    every = 1
    while requests_per_s > every * TRACKS_PER_S:
        every *= 2
    return every


def is_shown(request_id: str, every: int) -> bool:
    """Whether this is the one of so many that is shown."""
    return every == 1 or crc32(request_id.encode()) % every == 0


def live_tracks(live: Iterable[LiveRequest], every: int, since_s: float, now: float) -> list[list[Any]]:
    """The tracks of requests, the newest first, that run and whose phase changed after `since_s`."""
    found: list[list[Any]] = []
    for request in islice(live, LOOKED_AT):
        if request.closed or request.pinned or not is_shown(request.request_id, every):
            continue
        phases = live_phases(request)
        if phases[-1].start_s > since_s:
            found.append(_track(request.request_id, phases, now, "live"))
            if len(found) == MAX_TRACKS:
                break
    return found


def ended_tracks(ended: Iterable[Ended], since_s: float, now: float) -> list[list[Any]]:
    """The tracks of requests, the latest first, that ended after `since_s`."""
    found: list[list[Any]] = []
    for one in ended:
        if one.at_s <= since_s or len(found) == MAX_TRACKS:
            break
        phases = ended_phases(one.completion, one.at_s)
        found.append(_track(one.completion.request_id, phases, now, "failed" if one.completion.error else "ended"))
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
    return rows + [_ended_row(one) for one in islice(ended, count - len(rows))]


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


def _ended_row(one: Ended) -> dict[str, Any]:
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
