"""An open loop: requests arrive at random moments whether or not earlier ones have ended.

A closed loop sends its next request only when one has ended, so a slow router slows its own load down and its latency
looks better than what users would see. Here every latency counts from the intended arrival, also when the client could
not send at once. Workers are paced: each live stream gets a token a step, as from a real decode worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from baton.router.core.latency import percentile
from benchmarks.arrivals import Outcome, achieved_per_s, highest_kept, poisson_arrivals
from benchmarks.router_sides import Child, Side
from benchmarks.stream_clients import DRAIN_S, Refused, StreamClient, drain

Figures = dict[str, float]
SHARES = ((0.5, "p50"), (0.99, "p99"))


@dataclass(frozen=True, slots=True)
class OpenSetting:
    """How much is measured in the open loop."""

    turns: int
    window_s: float  # in which requests arrive
    tokens: int
    step_s: float
    common_per_s: float  # the rate at which all sides are compared
    peak_shares: tuple[float, ...]  # further rates, of each side's own closed-loop peak
    search_steps: int  # halvings of the range in which the highest kept rate lies
    search_window_s: float
    tries: int  # a rate that was not kept this often is not kept
    without_router: bool  # whether the same is sought for workers and client alone
    seed: int = 0

    @property
    def stream_s(self) -> float:
        """What a stream takes at most when nothing is late."""
        return self.tokens * self.step_s

    def labels(self) -> dict[str, float | None]:
        """How the figures of each load end, with its share of the peak (None: the common rate)."""
        shares = {f"{round(100 * share)}_pct": share for share in self.peak_shares}
        return {f"{self.common_per_s:g}_per_s": None} | shares


def play(
    client: StreamClient, worker: Child, rate_per_s: float, window_s: float, setting: OpenSetting, tag: str
) -> Outcome:
    """Send a window of random arrivals and read until every stream has ended."""
    warm = 8 + ceil(
        1.25 * rate_per_s * setting.stream_s
    )  # streams at once, so that no connection is opened while timed
    for index in range(warm):
        client.start(f"{tag}-warm-{index}", 2)
    drain(client, warm)
    worker.pace(setting.step_s)
    arrivals = poisson_arrivals(rate_per_s, window_s, setting.seed)
    begin = time.monotonic() + 0.01
    intended = {f"{tag}-{index}": begin + moment for index, moment in enumerate(arrivals)}
    due = list(reversed(intended.items()))
    deadline = begin + window_s + setting.stream_s + DRAIN_S
    ended, now = 0, time.monotonic()
    while ended < len(arrivals):
        while due and now >= due[-1][1]:
            client.start(due.pop()[0], setting.tokens)
        ended += len(client.read(min(0.05, max(0.0, due[-1][1] - now)) if due else 0.05))
        now = time.monotonic()
        if now > deadline:
            raise RuntimeError(f"{len(arrivals) - ended} of {len(arrivals)} streams at {rate_per_s:.1f}/s did not end.")
    left = worker.pace(0.0)
    ttft_s, late_s = [], []
    for name, index, arrived in client.tokens():
        if name in intended and index == 0:
            ttft_s.append(arrived - intended[name])
        elif name in intended:
            late_s.append(arrived - left[name, index])
    missing = len(arrivals) * setting.tokens - len(ttft_s) - len(late_s)
    achieved = achieved_per_s(len(arrivals), window_s, now - begin, setting.stream_s)
    return Outcome(len(arrivals) / window_s, achieved, ttft_s or [DRAIN_S], late_s or [DRAIN_S], missing)


def measure_open(label: str, rates_per_s: dict[str, float], setting: OpenSetting, side: Side, tag: str) -> Figures:
    """What one side adds at its rate, in milliseconds: the same arrivals through the router and directly."""
    rate = rates_per_s[side.name]
    seen: list[Outcome] = []
    for way, worker in ((side.direct, side.direct_worker), (side.routed, side.routed_worker)):
        client = way(0, True)
        seen.append(play(client, worker, rate, setting.window_s, setting, f"open-{tag}-{label}-{len(seen)}"))
        client.close()
        if seen[-1].missing:
            raise RuntimeError(f"{seen[-1].missing} tokens are missing at {rate:.1f} requests/s.")
    direct, routed = seen
    figures = {
        f"open_offered_per_s_{label}": routed.offered_per_s,
        f"open_achieved_per_s_{label}": routed.achieved_per_s,
    }
    for share, name in SHARES:
        ttft = percentile(routed.ttft_s, share) - percentile(direct.ttft_s, share)
        late = percentile(routed.late_s, share) - percentile(direct.late_s, share)
        figures[f"open_added_ttft_ms_{name}_{label}"] = 1000 * ttft
        figures[f"open_added_per_token_ms_{name}_{label}"] = 1000 * late
    return figures


def kept_per_s(
    way: Callable[[int, bool], StreamClient], worker: Child, peak_per_s: float, setting: OpenSetting, tag: str
) -> float:
    """The highest rate that is kept on one way, at most the closed loop's peak."""
    played = 0

    def keeps(rate_per_s: float) -> bool:
        nonlocal played
        for _ in range(setting.tries):
            played += 1
            client = way(0, True)
            try:
                if play(client, worker, rate_per_s, setting.search_window_s, setting, f"{tag}-{played}").kept:
                    return True
            except Refused:  # overload may be answered with an error
                worker.pace(0.0)
            finally:
                client.close()
        return False

    return highest_kept(peak_per_s, setting.search_steps, keeps)


def measure_kept(peaks_per_s: dict[str, float], setting: OpenSetting, side: Side, tag: str) -> Figures:
    """The highest rates kept through the router, and by workers and client without one: what could be seen at most."""
    peak = peaks_per_s[side.name]
    figures = {"kept_per_s": kept_per_s(side.routed, side.routed_worker, peak, setting, f"kept-{tag}")}
    if setting.without_router:
        bare = kept_per_s(side.direct, side.direct_worker, peak, setting, f"bare-{tag}")
        figures["kept_per_s_without_router"] = bare
    return figures
