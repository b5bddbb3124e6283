"""Small simulated clusters for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from baton.router.policy.policies import make_policy
from baton.simulator.result import Outcome, SimulationResult
from baton.simulator.setup import Pools, Setup
from baton.simulator.simulation import Simulation
from baton.simulator.trace import Synthetic, TraceRequest

MODEL, GPU = "llama-3.1-8b", "h100"


def small_trace(requests: int = 60, rate_s: float = 20.0, seed: int = 1) -> list[TraceRequest]:
    return Synthetic(requests, rate_s, prompt_median=400, output_median=60, think_s=2.0).generate(seed)


def simulation(
    trace: Sequence[TraceRequest],
    policy: str = "predicted_latency",
    pools: Pools = Pools(2, 2),  # noqa: B008 (immutable)
    *,
    jitter: float = 0.02,
    num_pages: int | None = None,
    host_pages: int = 0,
    seed: int = 0,
) -> Simulation:
    """A cluster of the small model; `num_pages` makes its workers' memory scarce, `host_pages` gives them
    slots for preempted sequences."""
    spec = replace(Setup(MODEL, GPU).cluster(pools), jitter=jitter)
    if num_pages is not None:
        workers = [replace(one, layout=replace(one.layout, num_pages=num_pages)) for one in spec.workers]
        spec = replace(spec, workers=workers)
    spec = replace(spec, workers=[replace(one, host_pages=host_pages) for one in spec.workers])
    return Simulation(spec, make_policy(policy, seed=seed), trace, seed)


def simulate(trace: Sequence[TraceRequest], policy: str = "predicted_latency", **options: object) -> SimulationResult:
    return simulation(trace, policy, **options).run()  # type: ignore[arg-type]


def by_arrival(result: SimulationResult) -> list[Outcome]:
    return sorted(result.outcomes, key=lambda one: (one.arrival_s, one.prompt_tokens, one.output_tokens))
