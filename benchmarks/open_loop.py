"""An open loop: requests arrive at random times whether or not earlier ones have ended.

A closed loop sends a request only when another has ended, so a slow router reduces its own load and its latency looks
better than users would see. Here every latency counts from the intended arrival, even if the client could not send in
time. Workers are paced: each live stream gets a token per step, as from a real decode worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from baton.protocol.latency import percentile
from benchmarks.arrivals import Outcome, achieved_per_s, highest_kept, poisson_arrivals
from benchmarks.router_sides import Child, Side
from benchmarks.stream_clients import DRAIN_S, Refused, StreamClient, drain

Figures = dict[str, float]
SHARES = ((0.5, "p50"), (0.99, "p99"))


@dataclass(frozen=True, slots=True)
class OpenSetting:
    """The amount of work in the open loop."""

    turns: int
    window_s: float  # Time in which requests arrive.
    tokens: int
    step_s: float
    common_per_s: float  # The rate at which all sides are compared.
    peak_shares: tuple[float, ...]  # Further rates, as shares of each side's own closed-loop peak.
    search_steps: int  # Bisections in the search for the highest sustained rate.
    search_window_s: float
    tries: int  # Failed tries after which a rate counts as not sustained.
    without_router: bool  # Whether to search the highest rate of workers and client alone, too.
    seed: int = 0

    @property
    def stream_s(self) -> float:
        """The longest duration of a stream when nothing is late."""
        return self.tokens * self.step_s

    def labels(self) -> dict[str, float | None]:
        """Suffixes of each load's figures, with its share of the peak (None: the common rate)."""
        shares = {f"{round(100 * share)}_pct": share for share in self.peak_shares}
        return {f"{self.common_per_s:g}_per_s": None} | shares


def play(
    client: StreamClient, worker: Child, rate_per_s: float, window_s: float, setting: OpenSetting, tag: str
) -> Outcome:
    """Send a window of random arrivals and read until every stream has ended."""
    # So many concurrent streams that no connection has to be opened during the measurement.
    warm = 8 + ceil(1.25 * rate_per_s * setting.stream_s)
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
    """The latency added by one side's router at its rate, in ms: the same arrivals through the router and directly."""
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
    """The highest sustained rate of one kind of client, at most the closed loop's peak."""
    played = 0

    def keeps(rate_per_s: float) -> bool:
        nonlocal played
        for _ in range(setting.tries):
            played += 1
            client = way(0, True)
            try:
                if play(client, worker, rate_per_s, setting.search_window_s, setting, f"{tag}-{played}").kept:
                    return True
            except Refused:  # A router may answer overload with an error.
                worker.pace(0.0)
            finally:
                client.close()
        return False

    return highest_kept(peak_per_s, setting.search_steps, keeps)


def measure_kept(peaks_per_s: dict[str, float], setting: OpenSetting, side: Side, tag: str) -> Figures:
    """The highest sustained rates through the router, and of workers and client without one, the upper bound."""
    peak = peaks_per_s[side.name]
    figures = {"kept_per_s": kept_per_s(side.routed, side.routed_worker, peak, setting, f"kept-{tag}")}
    if setting.without_router:
        bare = kept_per_s(side.direct, side.direct_worker, peak, setting, f"bare-{tag}")
        figures["kept_per_s_without_router"] = bare
    return figures
