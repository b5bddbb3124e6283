"""The planner in a simulated cluster: it follows a shift, and leaves a steady mix alone."""

from __future__ import annotations

from dataclasses import replace

from baton.harness.phases import LONG_ANSWERS, LONG_PROMPTS, phases
from baton.router.policy.policies import make_policy
from baton.simulator.setup import Pools, Setup
from baton.simulator.simulation import Simulation, Slo
from baton.simulator.trace import TraceRequest
from tests.simulator.running import GPU, MODEL

SETUP = Setup(MODEL, GPU, slo=Slo(tpot_s=0.02), auto=True)


def play(trace: list[TraceRequest], auto: bool = True) -> tuple[Simulation, dict[str, float]]:
    run = Simulation(replace(SETUP, auto=auto).cluster(Pools(2, 2)), make_policy("predicted_latency"), trace)
    result = run.run()
    assert not any(one.pages_in_use for one in result.workers)
    assert {one.error for one in result.outcomes} <= {"", "Overloaded"}
    return run, result.figures()


def test_the_planner_follows_a_shift_and_serves_more_than_without() -> None:
    trace = phases([[LONG_PROMPTS], [LONG_ANSWERS]], 14.0, 0.55, seed=1)
    run, moved = play(trace)
    _, fixed = play(trace, auto=False)
    splits = [operation.spec.prefill for operation in reversed(run.core.operations.newest())]  # type: ignore[union-attr]
    assert splits[0] == 3
    assert splits[-1] < 3
    assert moved["role_switches"] >= 2
    assert moved["goodput"] > fixed["goodput"]
    assert fixed["role_switches"] == 0


def test_the_planner_leaves_a_steady_mix_alone() -> None:
    run, figures = play(phases([[LONG_PROMPTS, LONG_ANSWERS]], 40.0, 0.2, seed=1))
    assert figures["role_switches"] == 0
    assert run.core.automation.look(run.events.now) is not None


def test_utilisation_counts_the_time_a_worker_had_each_role() -> None:
    run, figures = play(phases([[LONG_PROMPTS]], 15.0, 0.5, seed=1))
    assert figures["role_switches"] >= 1
    ends = run._busy[-1]
    elapsed_s = ends.time_s - 1.0  # the first request comes after a second
    assert abs(sum(ends.present_s.values()) - 4 * elapsed_s) < 1e-6
    for role in ends.present_s:
        assert ends.busy_s.get(role, 0.0) <= ends.present_s[role] + 1e-6
