"""The best split of GPUs into pools of workers: for each split, the highest load that most requests are happy with.

    splits ──every few──► bisection over load ──the best's neighbours──► bisection, finer ──► the best

A generator of rounds: it yields trials that do not depend on each other and receives what each showed, so that its
driver may run them one by one or in several processes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from baton.protocol.worker import RoleName
from baton.simulator.setup import Pools, Setup, workload
from baton.simulator.trace import TraceRequest

COARSE_SPLITS = 5  # that the first pass looks at, beside all mixed
COARSE_TOLERANCE = 0.25  # by which the highest load that attains may be missed, relative
TOLERANCE = 0.06
LOWEST = 2.0**-12  # arrival scale that is tried
MIN_SPAN_S = 30.0  # over which a trial's requests come: a shorter burst ends before queues have grown


@dataclass(frozen=True, slots=True)
class Trial:
    """One simulation to run: these pools, the trace's first `requests`, `scale` times as fast."""

    pools: Pools
    scale: float
    requests: int


@dataclass(frozen=True, slots=True)
class Probe:
    """What a trial showed; rates are requests per second."""

    trial: Trial
    requests_per_s: float
    goodput: float
    attainment: float


@dataclass(frozen=True, slots=True)
class SplitResult:
    """A split's highest load that attains: None where no load does. `probes` are in order of load.

    `capped`: the requests do not suffice to try a higher load, so it may attain more. `rough`: it was left behind
    after the first pass, over fewer requests.
    """

    pools: Pools
    best: Probe | None
    probes: tuple[Probe, ...]
    capped: bool = False
    rough: bool = False

    @property
    def goodput(self) -> float:
        return self.best.goodput if self.best else 0.0


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched: `attainment` is the share of requests that must meet their objectives."""

    setup: Setup
    trace: Sequence[TraceRequest]
    gpus: int
    attainment: float = 0.9

    def run(self, trial: Trial) -> Probe:
        """Simulate one trial."""
        result = self.setup.simulate(trial.pools, workload(self.trace, trial.requests, trial.scale))
        rate_s = len(result.outcomes) / result.span_s
        return Probe(trial, rate_s, result.goodput, result.attainment)

    def rounds(self) -> Generator[list[Trial], list[Probe], list[SplitResult]]:
        """Yields rounds of trials, receives their probes in the same order; returns the splits, best first."""
        everything, guess = len(self.trace), self._guess()
        enough = int(2 * MIN_SPAN_S * guess * everything / max(self.trace[-1].arrival_s, 1e-9))
        requests = min(everything, max(everything // 3, enough))
        coarse = yield from self._bisect(dict.fromkeys(self._coarse(), guess), requests, COARSE_TOLERANCE)
        near = self._near(coarse)
        scales = {one.pools: one.best.trial.scale for one in coarse if one.best}
        start = max(scales.values(), default=guess)
        fine = yield from self._bisect({pools: scales.get(pools, start) for pools in near}, everything, TOLERANCE)
        rest = [replace(one, rough=True) for one in coarse if one.pools not in near]
        return _ranked(fine) + _ranked(rest)

    def splits(self) -> list[Pools]:
        """Every split into prefill and decode workers that leaves no GPU idle which another one would serve with."""
        each, other = self.setup.degree(RoleName.PREFILL), self.setup.degree(RoleName.DECODE)
        by_decode: dict[int, Pools] = {}  # The last one of equal decode pools has most prefill workers
        for prefill in range(1, (self.gpus - other) // each + 1):
            decode = (self.gpus - prefill * each) // other
            by_decode[decode] = Pools(prefill, decode)
        return list(by_decode.values())

    @property
    def mixed(self) -> list[Pools]:
        """All as mixed workers, if there are enough for one."""
        workers = self.gpus // self.setup.degree(RoleName.MIXED)
        return [Pools(mixed=workers)] if workers else []

    def _coarse(self) -> list[Pools]:
        splits = self.splits()
        count = min(COARSE_SPLITS, len(splits))
        spread = [splits[round((index + 0.5) * len(splits) / count - 0.5)] for index in range(count)]
        return [*spread, *self.mixed]

    def _near(self, coarse: Sequence[SplitResult]) -> list[Pools]:
        """What may be the best: those that came close to it, and the neighbours of the best split."""
        goodput = max(one.goodput for one in coarse)
        close = {one.pools for one in coarse if one.best and one.goodput >= goodput * (1 - COARSE_TOLERANCE)}
        best = next((one.pools for one in _ranked(coarse) if one.best and not one.pools.mixed), None)
        splits = self.splits()
        reach = max(1, round(len(splits) / (2 * COARSE_SPLITS)))
        if best in close and best is not None:
            place = splits.index(best)
            close |= set(splits[max(place - reach, 0) : place + reach + 1])
        return [one for one in (*splits, *self.mixed) if one in close]

    def _guess(self) -> float:
        """The arrival scale at which as many prompt tokens come as half of the GPUs can compute, without hits."""
        timer = self.setup.timer(RoleName.PREFILL)
        work_s = sum(timer.seconds(one.prompt_tokens, one.prompt_tokens**2 / 2, 0, 0) for one in self.trace)
        return self.trace[-1].arrival_s * self.gpus / timer.devices / (2 * work_s)

    def _highest(self, requests: int) -> float:
        """The arrival scale at which the first `requests` come within the shortest time that tells something."""
        return max(self.trace[requests - 1].arrival_s / MIN_SPAN_S, LOWEST)

    def _bisect(
        self, guesses: dict[Pools, float], requests: int, tolerance: float
    ) -> Generator[list[Trial], list[Probe], list[SplitResult]]:
        """One bisection for each split, in step."""
        highest = self._highest(requests)
        probes: dict[Pools, list[Probe]] = {pools: [] for pools in guesses}
        scales: dict[Pools, float | None] = {
            pools: min(max(scale, LOWEST), highest) for pools, scale in guesses.items()
        }
        while trials := [Trial(pools, scale, requests) for pools, scale in scales.items() if scale is not None]:
            for probe in (yield trials):
                pools = probe.trial.pools
                probes[pools].append(probe)
                scales[pools] = self._next_scale(probes[pools], highest, tolerance)
        return [self._result(pools, found, highest) for pools, found in probes.items()]

    def _next_scale(self, probes: Sequence[Probe], highest: float, tolerance: float) -> float | None:
        """The next load to try, None when the highest that attains is known well enough."""
        last, step = probes[-1].trial.scale, 1 + 4 * tolerance
        too_high = min((one.trial.scale for one in probes if one.attainment < self.attainment), default=None)
        if too_high is None:
            return min(last * step, highest) if last < highest else None
        attained = [one.trial.scale for one in probes if one.attainment >= self.attainment]
        high_enough = max((scale for scale in attained if scale < too_high), default=None)
        if high_enough is None:
            recent = [one.attainment for one in probes[-3:]]
            if len(recent) == 3 and max(recent[1:]) <= recent[0]:
                return None  # less load does not help
            lower = last / (step if len(probes) < 3 else 2.0)
            return lower if lower >= LOWEST else None
        return None if too_high <= high_enough * (1 + tolerance) else float((too_high * high_enough) ** 0.5)

    def _result(self, pools: Pools, probes: list[Probe], highest: float) -> SplitResult:
        attained = [one for one in probes if one.attainment >= self.attainment]
        best = max(attained, key=lambda one: one.goodput, default=None)
        capped = best is not None and best.trial.scale >= highest
        return SplitResult(pools, best, tuple(sorted(probes, key=lambda one: one.trial.scale)), capped)


def _ranked(results: Sequence[SplitResult]) -> list[SplitResult]:
    """Best first; of equals the one with fewer prefill workers."""
    return sorted(results, key=lambda one: (-one.goodput, one.pools.mixed, one.pools.prefill))
