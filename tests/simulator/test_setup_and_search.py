"""From options to a cluster, and the search for the best split."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from baton.protocol.errors import ConfigError
from baton.protocol.worker import RoleName
from baton.simulator.result import SimulationResult
from baton.simulator.search import Probe, Search, SplitResult, Trial
from baton.simulator.setup import PAGE_SIZE, Degrees, Pools, Setup, page_size_for, workload
from baton.simulator.trace import TraceRequest
from baton.simulator.worker import Answers
from tests.simulator.running import GPU, MODEL, small_trace


def test_a_worker_has_as_few_accelerators_as_hold_the_model() -> None:
    assert Setup("llama-3.1-8b", "h100").degree(RoleName.PREFILL) == 1
    assert Setup("llama-3.1-70b", "h100").degree(RoleName.DECODE) == 4
    assert Setup("llama-3.3-70b-fp8", "h100").degree(RoleName.DECODE) == 2
    assert Setup("llama-3.1-70b", "h100", tensor_parallel=Degrees(mixed=8)).degree(RoleName.MIXED) == 8
    described = Setup("llama-3.1-70b", "h100").described(Pools(1, 2))
    assert described["worker"].startswith("4 × h100: 141 GB of weights")
    assert described["pools"] == "1 prefill + 2 decode (12 × h100)"


def test_pools_of_unequal_degrees_are_described_apart() -> None:
    setup, pools = Setup("llama-3.1-70b", "h100", tensor_parallel=Degrees(decode=8)), Pools(1, 2)
    described = setup.described(pools)
    assert described["prefill worker"].startswith("4 × h100")
    assert described["decode worker"].startswith("8 × h100")
    assert described["pools"] == "1 prefill + 2 decode (20 × h100)"
    assert setup.named(pools) == "1 prefill × 4 + 2 decode × 8 GPUs"
    assert Setup(MODEL, GPU).named(pools) == "1 prefill + 2 decode"
    ranks = [worker.ranks for worker in setup.cluster(pools).workers]
    assert ranks == [4, 8, 8]


@pytest.mark.parametrize(
    ("setup", "pools", "word"),
    [
        (Setup(MODEL, GPU, policy="best"), Pools(1, 1), "round_robin"),
        (Setup("gpt-5", GPU), Pools(1, 1), "llama-3.1-8b"),
        (Setup(MODEL, "tpu"), Pools(1, 1), "h100"),
        (Setup("llama-3.1-70b", "l40s", tensor_parallel=Degrees(1, 1)), Pools(1, 1), "tensor-parallel"),
        (Setup("qwen2.5-7b", GPU, tensor_parallel=Degrees(decode=8)), Pools(1, 1), "28 attention heads"),
        (Setup(MODEL, GPU, tensor_parallel=Degrees(prefill=3)), Pools(1, 1), "among 3 ranks"),
        (Setup(MODEL, GPU), Pools(prefill=3), "decode"),
    ],
)
def test_what_cannot_be_simulated_is_refused(setup: Setup, pools: Pools, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        setup.cluster(pools)


@pytest.mark.parametrize("text", ["[]", "7", "{", '{"architectures": ["LlamaForCausalLM"]}'])
def test_a_config_json_that_describes_no_model_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError):
        Setup(str(tmp_path), GPU).timer(RoleName.MIXED)


def test_the_page_size_is_the_traces_block_size() -> None:
    assert page_size_for([TraceRequest(0, 1, 1), TraceRequest(0, 1, 1, (3,), 512)], None) == 512
    assert page_size_for([TraceRequest(0, 1, 1)], None) == PAGE_SIZE
    assert page_size_for([TraceRequest(0, 1, 1, (3,), 512)], 16) == 16


def test_a_workload_is_the_first_requests_at_another_speed() -> None:
    trace = small_trace(20)
    assert [one.arrival_s for one in workload(trace, 5, 2.0)] == [one.arrival_s / 2 for one in trace[:5]]
    assert len(workload(trace, None, 1.0)) == 20


def _searched(search: Search, probe: object) -> tuple[list[SplitResult], list[Trial]]:
    """Run a search over made-up probes; returns also every trial."""
    rounds, tried = search.rounds(), []
    trials = next(rounds)
    while True:
        tried += trials
        try:
            trials = rounds.send([probe(trial) for trial in trials])  # type: ignore[operator]
        except StopIteration as stop:
            return stop.value, tried


def _made_up(search: Search, capacity: dict[Pools, float]) -> object:
    """Up to its capacity (requests per second) a split serves every request, above it no more."""

    def probe(trial: Trial) -> Probe:
        span_s = search.trace[trial.requests - 1].arrival_s / trial.scale
        rate_s = trial.requests / span_s
        attainment = min(1.0, capacity[trial.pools] / rate_s)
        return Probe(trial, rate_s, attainment * rate_s, attainment)

    return probe


LONG = [TraceRequest(0.5 * index, 1000, 100) for index in range(2000)]


@pytest.mark.parametrize("best", range(1, 16))
def test_the_best_split_is_found(best: int) -> None:
    search = Search(Setup(MODEL, GPU), LONG, 16)
    capacity = {split: 30.0 / (1 + abs(split.prefill - best)) ** 0.2 for split in search.splits()}
    found, tried = _searched(search, _made_up(search, {**capacity, Pools(mixed=16): 10.0}))
    assert found[0].pools == Pools(best, 16 - best)
    assert found[0].best is not None
    assert found[0].best.attainment >= 0.9
    assert found[0].best.requests_per_s == pytest.approx(30.0 / 0.9, rel=0.07)
    assert len(tried) < 90
    assert not found[0].capped


def test_mixed_workers_can_be_the_best() -> None:
    search = Search(Setup(MODEL, GPU), LONG, 3)
    found, _ = _searched(search, _made_up(search, {**dict.fromkeys(search.splits(), 9.0), Pools(mixed=3): 11.0}))
    assert found[0].pools == Pools(mixed=3)
    assert {one.pools for one in found} == {Pools(1, 2), Pools(2, 1), Pools(mixed=3)}


def test_splits_of_unequal_degrees_use_every_gpu_that_another_worker_would_serve_with() -> None:
    search = Search(Setup(MODEL, GPU, tensor_parallel=Degrees(1, 4, 2)), LONG, 10)
    assert search.splits() == [Pools(2, 2), Pools(6, 1)]
    assert search.mixed == [Pools(mixed=5)]
    search = Search(Setup(MODEL, GPU, tensor_parallel=Degrees(4, 1, 8)), LONG, 7)
    assert search.splits() == [Pools(1, 3)]
    assert search.mixed == []
    found, _ = _searched(search, _made_up(search, {Pools(1, 3): 5.0}))
    assert [one.pools for one in found] == [Pools(1, 3)]


def test_one_worker_is_mixed() -> None:
    search = Search(Setup(MODEL, GPU), LONG, 1)
    found, _ = _searched(search, _made_up(search, {Pools(mixed=1): 5.0}))
    assert [one.pools for one in found] == [Pools(mixed=1)]


def test_a_search_ends_where_no_load_attains_or_every_load_does() -> None:
    search = Search(Setup(MODEL, GPU), LONG, 4)
    never, _ = _searched(search, lambda trial: Probe(trial, 1.0, 0.5, 0.5))
    assert all(one.best is None and one.goodput == 0.0 for one in never)
    always, tried = _searched(search, lambda trial: Probe(trial, trial.scale, trial.scale, 1.0))
    assert all(one.capped for one in always)
    assert max(trial.scale for trial in tried) <= LONG[-1].arrival_s / 30


def test_a_trial_is_a_simulation_and_can_be_sent_to_another_process() -> None:
    search = pickle.loads(pickle.dumps(Search(Setup(MODEL, GPU), small_trace(40), 2)))
    probe = search.run(Trial(Pools(1, 1), 2.0, 20))
    assert probe.requests_per_s == pytest.approx(2 * 20 / search.trace[19].arrival_s)
    assert probe == search.run(Trial(Pools(1, 1), 2.0, 20))
    assert 0 < probe.attainment <= 1


def test_figures_of_nothing_are_zero() -> None:
    result = SimulationResult([], [], answers=Answers(), bytes_moved=0, arrivals_s=0.0, simulated_s=0.0, events=0)
    assert result.figures()["goodput"] == 0.0
