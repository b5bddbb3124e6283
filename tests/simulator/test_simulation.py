"""The simulated cluster: repeatable, complete, and right where it can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from math import hypot

import pytest

from baton.protocol.errors import InternalError
from baton.protocol.messages import Prefill, Work
from baton.protocol.request import Request, SamplingParams
from baton.router.core.operation import OperationState, Rebalance
from baton.router.policy.placement import Place, Refuse
from baton.router.policy.policies import NAMES, make_policy
from baton.router.policy.predicted_latency import PredictedLatency
from baton.simulator.setup import Degrees, Pools, Setup
from baton.simulator.simulation import Simulation, Slo
from baton.simulator.trace import TraceRequest, scale_arrivals
from baton.simulator.worker import SimulatedWorker
from baton.worker.core.role import SwapIn, SwapOut
from tests.simulator.running import GPU, MODEL, by_arrival, simulate, simulation, small_trace

LATENCY_S = 100e-6  # of a message


@pytest.mark.parametrize("policy", NAMES)
def test_the_same_seed_gives_the_same_figures(policy: str) -> None:
    trace = small_trace(30)
    assert simulate(trace, policy).figures() == simulate(trace, policy).figures()


def test_another_seed_gives_other_step_times() -> None:
    trace = small_trace(30)
    assert simulate(trace, seed=1).figures() != simulate(trace, seed=2).figures()


@pytest.mark.parametrize("pools", [Pools(2, 2), Pools(mixed=2), Pools(1, 1, 1)], ids=str)
@pytest.mark.parametrize("policy", NAMES)
def test_every_request_ends_once_with_its_tokens_and_every_page_comes_back(policy: str, pools: Pools) -> None:
    trace = small_trace()
    run = simulation(trace, policy, pools)
    result = run.run()
    assert run.core.live == 0
    assert [one.pages_in_use for one in result.workers] == [0] * len(result.workers)
    outcomes = by_arrival(result)
    assert [one.arrival_s for one in outcomes] == [one.arrival_s for one in trace]
    served = [(one, traced) for one, traced in zip(outcomes, trace, strict=True) if not one.error]
    assert all(one.output_tokens == traced.output_tokens for one, traced in served)
    assert all(one.error in ("", "Overloaded") for one in outcomes)
    assert len(served) > len(trace) // 2
    computed = sum(one.prompt_tokens - one.cached_tokens + one.output_tokens - 1 for one, _ in served)
    assert sum(worker.tokens_computed for worker in result.workers) == computed


@pytest.mark.parametrize("policy", NAMES)
def test_scarce_memory_loses_no_page(policy: str) -> None:
    trace = [replace(one, prompt_tokens=min(one.prompt_tokens, 4000)) for one in scale_arrivals(small_trace(), 4.0)]
    run = simulation(trace, policy, num_pages=140)
    result = run.run()
    assert run.core.live == 0
    assert not any(one.pages_in_use for one in result.workers)
    for one, traced in zip(by_arrival(result), trace, strict=True):
        assert one.error == "Overloaded" or one.output_tokens == traced.output_tokens


@pytest.mark.parametrize("pools", [Pools(2, 2), Pools(mixed=2)], ids=str)
def test_runs_of_decode_steps_take_as_long_as_the_steps_one_by_one(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = small_trace(40)
    fast = simulate(trace, "round_robin", pools=pools, jitter=0.0)
    monkeypatch.setattr(SimulatedWorker, "_quiet_steps", lambda worker, plan: 1)
    slow = simulate(trace, "round_robin", pools=pools, jitter=0.0)
    assert slow.events > 1.5 * fast.events
    for one, other in zip(by_arrival(fast), by_arrival(slow), strict=True):
        # Not to the last digit: reports come at the ends of runs, and so placements differ a little.
        assert one.ttft_s == pytest.approx(other.ttft_s, rel=1e-2)
        assert one.tpot_s == pytest.approx(other.tpot_s, rel=5e-2)
    assert [one.tokens_computed for one in fast.workers] == [one.tokens_computed for one in slow.workers]


PROMPT, OUTPUT = 1000, 21
KV_BYTES = 2 * 2 * 32 * 8 * 128  # of one token
STEP_S = 0.8e-3  # beside what is computed


def _product_s(inputs: int, outputs: int, rows: int) -> float:
    """Arithmetic at 72 % of 989 Tflop/s, reading at 86 % of 3.35 TB/s, and a launch."""
    numbers = inputs * outputs + rows * (inputs + outputs)
    return hypot(2 * inputs * outputs * rows / (0.72 * 989e12), 2 * numbers / (0.86 * 3.35e12)) + 1.5e-6


def _linear_s(rows: int) -> float:
    """32 layers of four products and five kernels over rows at 60 % of the bandwidth, and the head for one row."""
    shapes = ((4096, (32 + 2 * 8) * 128), (32 * 128, 4096), (4096, 2 * 14336), (14336, 4096))
    kernels = 2 * rows * (7 * 4096 + 2 * (32 + 8) * 128 + 3 * 14336) / (0.60 * 3.35e12) + 5 * 5e-6
    return 32 * (sum(_product_s(*shape, rows) for shape in shapes) + kernels) + _product_s(4096, 128256, 1)


def _prefill_s() -> float:
    """Pairs of positions cost attention at 45 % of the peak."""
    attention = 4 * 32 * 32 * 128 * PROMPT**2 / 2
    return _linear_s(PROMPT) + attention / (0.45 * 989e12) + STEP_S


def _decode_s(context: int) -> float:
    """KV is read at 80 % of 3.35 TB/s."""
    return _linear_s(1) + KV_BYTES * context / (0.80 * 3.35e12) + STEP_S + 10e-6


@pytest.mark.parametrize("pools", [Pools(1, 1), Pools(mixed=1)], ids=str)
def test_one_request_on_idle_workers_takes_as_long_as_worked_out_by_hand(pools: Pools) -> None:
    result = simulate([TraceRequest(0.0, PROMPT, OUTPUT)], "round_robin", pools=pools, jitter=0.0)
    (outcome,) = result.outcomes
    assert outcome.ttft_s == pytest.approx(_prefill_s() + 2 * LATENCY_S, rel=1e-9)
    decode_s = sum(_decode_s(PROMPT + index) for index in range(1, OUTPUT))
    pages = -(-PROMPT // 64)
    handoff_s = 0.0 if pools.mixed else LATENCY_S + pages * 64 * KV_BYTES / 45e9
    assert outcome.tpot_s == pytest.approx((handoff_s + decode_s) / (OUTPUT - 1), rel=1e-9)
    assert result.bytes_moved == (0 if pools.mixed else pages * 64 * KV_BYTES)
    assert sum(worker.busy_s for worker in result.workers) == pytest.approx(_prefill_s() + decode_s, rel=1e-9)


@pytest.mark.parametrize(
    ("degrees", "slowest"),
    [
        (Degrees(2, 2), 1 / 2),
        (Degrees(4, 2), 2 / 4),
        (Degrees(1, 4), 4 / 4),
        (Degrees(8, 8), 1 / 8),
        (Degrees(16, 2), 1 / 2),
    ],
)
def test_a_handoff_takes_as_long_as_the_slowest_pair_of_ranks(degrees: Degrees, slowest: float) -> None:
    """Each rank's link carries its pieces one after another: `slowest` is the largest share of a page on one link."""
    spec = Setup(MODEL, GPU, tensor_parallel=degrees).cluster(Pools(1, 1))
    trace = [TraceRequest(0.0, PROMPT, 2)]
    result = Simulation(replace(spec, jitter=0.0), make_policy("round_robin"), trace).run()
    (outcome,) = result.outcomes
    decode_s = spec.workers[1].timer.seconds(0, 0, 1, PROMPT + 1)
    page_bytes = 64 * KV_BYTES
    handoff_s = 2 * LATENCY_S + -(-PROMPT // 64) * page_bytes * slowest / 45e9
    assert outcome.tpot_s == pytest.approx(handoff_s + decode_s, rel=1e-9)
    assert result.bytes_moved == -(-PROMPT // 64) * page_bytes * max(1, spec.workers[1].ranks // 8)


def test_equal_blocks_are_prefix_hits_and_do_not_travel_again() -> None:
    blocks = tuple(range(16))
    trace = [TraceRequest(5.0 * index, 1024, 8, blocks, 64) for index in range(3)]
    result = simulate(trace, pools=Pools(1, 1))
    assert [one.cached_tokens for one in by_arrival(result)] == [0, 960, 960]  # the last token is always computed
    once = simulate(trace[:1], pools=Pools(1, 1))
    assert result.bytes_moved <= once.bytes_moved + 2 * KV_BYTES * 64
    apart = [replace(one, blocks=tuple(range(100 * index, 100 * index + 16))) for index, one in enumerate(trace)]
    assert simulate(apart, pools=Pools(1, 1)).figures()["prefix_hit_rate"] == 0.0


def test_preempted_sequences_are_swapped_at_the_stated_bandwidth_instead_of_being_computed_again() -> None:
    trace = [TraceRequest(0.0, 1600, 2000), TraceRequest(0.0, 1600, 2000)]  # 57 pages each at their ends
    mixed = {"policy": "round_robin", "pools": Pools(mixed=1), "jitter": 0.0}
    roomy = simulate(trace, **mixed)  # type: ignore[arg-type]
    short = {host: simulation(trace, num_pages=92, host_pages=host, **mixed) for host in (0, 92)}  # type: ignore[arg-type]
    (again,), (swapped,) = (run.run().workers for run in short.values())
    (needed,) = roomy.workers
    assert not any(run.core.explanations.failed for run in short.values())
    assert again.tokens_computed > needed.tokens_computed == swapped.tokens_computed
    (worker,) = short[92]._workers.values()
    assert worker.session.role.occupancy().swap_outs == 1
    assert swapped.pages_in_use == 0


def test_a_copy_takes_its_bytes_over_the_bandwidth() -> None:
    run = simulation([], pools=Pools(mixed=1), jitter=0.0)
    (worker,) = run._workers.values()
    while run.events.step():  # it registers
        pass
    worker._perform([SwapOut((1, 2, 3), (0, 1, 2)), SwapIn((0,), (4,))])
    assert worker._copying_s == pytest.approx(4 * 64 * KV_BYTES / (0.8 * 64e9))
    request = Request("r", (1,) * PROMPT, SamplingParams(max_tokens=1), 0.0)
    worker.receive([Prefill("r", Work(request), "", False, 0)])
    while worker._run is not None:
        run.events.step()
    assert sum(worker.busy.seconds.values()) == pytest.approx(_prefill_s() + 4 * 64 * KV_BYTES / (0.8 * 64e9))


def test_a_trace_that_is_faster_comes_in_less_time() -> None:
    trace = small_trace(20)
    faster = scale_arrivals(trace, 4.0)
    assert [one.arrival_s for one in faster] == pytest.approx([one.arrival_s / 4 for one in trace])
    assert [replace(one, arrival_s=0.0) for one in faster] == [replace(one, arrival_s=0.0) for one in trace]


def test_a_request_of_a_long_trace_needs_no_more_events() -> None:
    short, long = (simulate(small_trace(requests), "least_loaded") for requests in (100, 400))
    assert long.events / len(long.outcomes) < 1.25 * short.events / len(short.outcomes)


def test_refusals_count_against_attainment_and_the_longest_prompts_are_told_apart() -> None:
    trace = [TraceRequest(0.01 * index, 8000 if index % 10 == 0 else 200, 4) for index in range(200)]
    figures = simulate(trace, pools=Pools(mixed=1)).figures()
    assert figures["slo_attainment"] <= 1 - figures["refused"] / len(trace)
    assert figures["refused"] > 0
    assert 0 <= figures["slo_attainment_longest_tenth"] < figures["slo_attainment"]


def test_a_prompt_too_long_for_its_tpot_ends_too() -> None:
    """It once waited for a decode worker fast enough, which no idle one ever was."""
    trace = [TraceRequest(0.0, 500, 4), TraceRequest(0.1, 1 << 17, 4)]
    run = Simulation(
        Setup(MODEL, "l40s", slo=Slo(tpot_s=0.03)).cluster(Pools(1, 1)), make_policy("predicted_latency"), trace
    )
    assert [one.error for one in by_arrival(run.run())] == ["", "Overloaded"]


def test_a_run_in_which_nothing_can_happen_any_more_is_an_error() -> None:
    class Never(PredictedLatency):
        def decide(self, queue: object, state: object, now: float) -> list[Place | Refuse]:
            return []

    run = Simulation(Setup(MODEL, GPU).cluster(Pools(1, 1)), Never(), [TraceRequest(0.0, 10, 1)])
    with pytest.raises(InternalError, match="1 requests are still live"):
        run.run()


def test_a_worker_switches_its_role_in_the_middle_of_a_trace() -> None:
    """The request that verifies it is none of the trace's."""
    run = simulation(small_trace(), pools=Pools(2, 2))
    asks = iter([Rebalance(1, 3), Rebalance(3, 1)])
    for at_s in (2.0, 3.0):
        run.events.at(at_s, lambda: run._perform(run.core.start_operation("", next(asks), False, run.events.now)[1]))
    result = run.run()
    assert [one.state for one in run.core.operations.newest()] == [OperationState.DONE] * 2
    assert not any(one.error or one.output_tokens == 0 for one in result.outcomes)
    assert not any(one.pages_in_use for one in result.workers)
