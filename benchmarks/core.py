"""CPU time of the router's pure core per request, over cluster sizes, inside the simulator.

Only `on_frame` and `tick` count, from the first request on. Half of the workers prefill. `busy` figures
are at the higher of two rates, close to what the pools can serve. `core_requests_per_s_1000_workers` is the
inverse, with 32 gateways.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from baton.harness.report import Goal, Report, arguments, progress
from baton.simulator.result import SimulationResult
from baton.simulator.setup import Pools, Setup
from baton.simulator.simulation import GATEWAY, Simulation
from baton.simulator.trace import Synthetic

WORKERS = (8, 32, 96, 512)
RATES = {"": 3.0, "_busy": 5.5}  # requests/s per worker
PROMPT_TOKENS, OUTPUT_TOKENS = 2000, 200  # medians
GOALS = {f"core_ms_per_request_{workers}{load}": Goal(1.0, at_most=True) for load in RATES for workers in WORKERS}
GOALS |= {f"core_ratio_512_to_8{load}": Goal(1.3, at_most=True) for load in RATES}
LARGE_WORKERS, LARGE_GATEWAYS = 1000, 32
GOALS[f"core_requests_per_s_{LARGE_WORKERS}_workers"] = Goal(1000)


@dataclass(eq=False)
class CoreClock:
    """CPU seconds spent in some methods of an object, once it runs."""

    spent_s: float = 0.0
    running: bool = False

    def measure(self, target: object, *methods: str) -> None:
        """Count what calls of these methods take."""
        for name in methods:
            setattr(target, name, self._timed(getattr(target, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            self.running |= values[0] == GATEWAY  # its first frame has the first request
            begun_s = time.process_time()
            try:
                return method(*values, **named)
            finally:
                if self.running:
                    self.spent_s += time.process_time() - begun_s

        return call


@dataclass(frozen=True, slots=True)
class Measured:
    """One simulated cluster at one rate."""

    core_s: float  # CPU time of the core
    wall_s: float  # of the whole simulation
    result: SimulationResult


def measure(workers: int, requests: int, rate_s: float, policy: str, seed: int, gateways: int = 1) -> Measured:
    """Simulate `workers` with requests at `rate_s` in all, and time the core."""
    trace = Synthetic(requests, rate_s, PROMPT_TOKENS, OUTPUT_TOKENS).generate(seed)
    setup = Setup("llama-3.1-8b", "h100", policy=policy, seed=seed)
    cluster = replace(setup.cluster(Pools(workers // 2, workers - workers // 2)), gateways=gateways)
    simulation = Simulation(cluster, setup.placement(), trace, setup.seed)
    clock = CoreClock()
    clock.measure(simulation.core, "on_frame", "tick")
    gc.collect()  # what an earlier simulation left is not this one's cost
    begun_s = time.perf_counter()
    result = simulation.run()
    assert len(result.outcomes) == requests
    return Measured(clock.spent_s, time.perf_counter() - begun_s, result)


def main() -> None:
    parser = arguments(__doc__, "python -m benchmarks.core --workers 8 32 96 --json core.json", full_s=1200.0)
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--policy", default="predicted_latency")
    options = parser.parse_args()
    per_worker, most = options.pick((20.0, 4_000), (5.0, 600), (0.25, 100))
    report = Report("core", GOALS)
    report.setting = {
        "requests_per_worker": per_worker,
        "most_requests": most,
        "requests_per_s_per_worker": RATES[""],
        "requests_per_s_per_worker_busy": RATES["_busy"],
        "policy": options.policy,
        "seed": options.seed,
    }

    def count(workers: int) -> int:
        return min(max(int(per_worker * workers), 8), most)

    with progress(len(RATES) * len(options.workers) + 1) as step:
        for load, rate_s in RATES.items():
            for workers in options.workers:
                requests = count(workers)
                step(f"{workers} workers at {rate_s * workers:g} requests/s, {requests} of them")
                one = measure(workers, requests, rate_s * workers, options.policy, options.seed)
                suffix = f"{workers}{load}"
                report.figures[f"core_ms_per_request_{suffix}"] = 1e3 * one.core_s / requests
                report.figures[f"attainment_{suffix}"] = one.result.attainment
                report.figures[f"attainment_longest_tenth_{suffix}"] = one.result.longest_tenth_attainment
                report.figures[f"events_per_s_{suffix}"] = one.result.events / one.wall_s
            if {8, 512} <= set(options.workers):
                of_512, of_8 = (report.figures[f"core_ms_per_request_{count}{load}"] for count in (512, 8))
                report.figures[f"core_ratio_512_to_8{load}"] = of_512 / of_8
        rate_s, requests = RATES[""] * LARGE_WORKERS, count(LARGE_WORKERS)
        step(f"{LARGE_WORKERS} workers and {LARGE_GATEWAYS} gateways at {rate_s:g} requests/s, {requests} of them")
        one = measure(LARGE_WORKERS, requests, rate_s, options.policy, options.seed, LARGE_GATEWAYS)
        report.figures[f"core_requests_per_s_{LARGE_WORKERS}_workers"] = requests / one.core_s
    report.publish(options)


if __name__ == "__main__":
    main()
