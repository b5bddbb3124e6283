"""The simulator's accuracy: the same requests at the same times on live workers and in the simulator.

A prefill and a decode worker of the built-in model serve a Poisson stream. Step times are fitted to each worker's own
step reports. The simulator replays the stream with the fitted step times and the measured message latency and
bandwidth. Router core, roles, pages and policy are the same code on both sides.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from baton.builtin_model import CHECKPOINT
from baton.gateway.core.commands import StreamEnd
from baton.gateway.driver import GatewayDriver
from baton.harness.answer import answer
from baton.harness.process_cluster import ProcessCluster, plans
from baton.harness.report import Goal, Report, arguments, progress
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import RoleName, StepSample, WorkerLoad
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.latency_model import StepCosts
from baton.router.policy.policies import make_policy
from baton.simulator.simulation import ClusterSpec, Simulation, WorkerSpec
from baton.simulator.trace import TraceRequest

GOALS = {"ttft_error": Goal(0.15, at_most=True), "tpot_error": Goal(0.15, at_most=True)}
NUM_PAGES, CHUNK_TOKENS, MIXED_CHUNK_TOKENS, MAX_BATCH = 4096, 512, 128, 32
CONTEXT_TOKENS, PROBES = 2048, 20


@dataclass(eq=False)
class RecordingState(ClusterState):
    """A `ClusterState` that keeps every step that workers report."""

    samples: dict[str, list[StepSample]] = field(default_factory=dict)

    def report(self, load: WorkerLoad, now: float) -> None:
        self.samples.setdefault(load.worker, []).extend(load.steps)
        super().report(load, now)


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests with their arrival times."""

    requests: list[TraceRequest]

    @classmethod
    def poisson(cls, count: int, rate_s: float, seed: int) -> Stream:
        """`count` Poisson arrivals at `rate_s` requests per second, with prompts and answers of mixed length."""
        rng = random.Random(seed)
        now, requests = 0.0, []
        for _ in range(count):
            now += rng.expovariate(rate_s)
            requests.append(TraceRequest(now, rng.randint(32, 1200), rng.randint(4, 64)))
        return cls(requests)


@dataclass(frozen=True, slots=True)
class Live:
    """The measurements of the live cluster."""

    ends: list[StreamEnd]
    samples: dict[str, list[StepSample]]
    latency_s: float  # Latency of a message.
    bandwidth_bytes_s: float
    layout: Any


async def run_live(stream: Stream, policy: str) -> Live:
    """Serve the stream with two worker processes, with router and gateway in this process."""
    router_config, worker_config = plans(
        CHECKPOINT, CONTEXT_TOKENS, NUM_PAGES, policy=policy, chunk_tokens=CHUNK_TOKENS, max_batch=MAX_BATCH
    )
    engine = worker_config.engine.changed(mixed_chunk_tokens=MIXED_CHUNK_TOKENS, checksum_every=16)
    worker_config = replace(worker_config, engine=engine)
    state = RecordingState()
    async with ProcessCluster(router_config, worker_config, {"prefill": 1, "decode": 1}, state=state) as cluster:
        driver = cluster.gateway.driver
        probes = [await _ask(driver, f"probe-{n}", _prompt(n, 64), 4) for n in range(PROBES)]
        await cluster.until(lambda: any(one.prefill_tokens for steps in state.samples.values() for one in steps))
        prompts = [one.seconds for steps in state.samples.values() for one in steps if one.prefill_tokens]
        latency_s = max(0.0, median(one.latency.ttft_s or 0.0 for one in probes) - median(prompts)) / 2
        state.samples.clear()
        ends = await _play(driver, stream)
        await cluster.until(lambda: all(state.samples.get(name) for name, _ in cluster.names))
        moved = [one.handoff for one in ends if one.handoff is not None and one.handoff.transfer_s > 0]
        bandwidth = sum(one.bytes_sent for one in moved) / max(sum(one.transfer_s for one in moved), 1e-9)
        layout = state.workers["decode-0"].info.endpoint.layout
        return Live(ends, state.samples, latency_s, bandwidth or 1e9, layout)


def _prompt(number: int, tokens: int) -> tuple[int, ...]:
    """Random tokens, different for each request."""
    generator = np.random.default_rng(number)
    return tuple(int(token) for token in generator.integers(3, 256, tokens))


async def _play(driver: GatewayDriver, stream: Stream) -> list[StreamEnd]:
    start_s = driver.clock() + 0.5
    tasks = []
    for number, request in enumerate(stream.requests):
        await asyncio.sleep(max(0.0, start_s + request.arrival_s - driver.clock()))
        prompt = _prompt(1000 + number, request.prompt_tokens)
        tasks.append(asyncio.create_task(_ask(driver, f"r{number}", prompt, request.output_tokens)))
    return list(await asyncio.gather(*tasks))


async def _ask(driver: GatewayDriver, request_id: str, prompt: tuple[int, ...], output_tokens: int) -> StreamEnd:
    sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True, seed=0)
    return (await answer(driver, Request(request_id, prompt, sampling)))[1]


def fit(samples: list[StepSample]) -> StepCosts:
    """Non-negative least squares over one worker's steps, twice; the second time on errors relative to the first fit.

    Errors relative to the measured times would give slow steps too little weight.
    """
    rows = np.array([[1.0, s.prefill_tokens, s.prefill_pairs, s.decodes, s.context_tokens] for s in samples])
    seconds = np.array([s.seconds for s in samples])
    weights = _not_negative(rows, seconds)
    predicted = np.maximum(rows @ weights, 0.1 * float(np.median(seconds)))
    return StepCosts(*_not_negative(rows / predicted[:, None], seconds / predicted).tolist())


def _not_negative(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares without negative coefficients: columns that would get one are removed, one after another."""
    scale = np.maximum(np.abs(rows).max(axis=0), 1e-12)
    used, weights = np.ones(rows.shape[1], bool), np.zeros(rows.shape[1])
    while True:
        weights[:] = 0.0
        weights[used] = np.linalg.lstsq(rows[:, used] / scale[used], target, rcond=None)[0]
        if weights.min() >= 0.0:
            return np.asarray(weights / scale)
        used[int(np.argmin(weights))] = False


def run_simulation(stream: Stream, live: Live, policy: str, seed: int) -> dict[str, float]:
    """Figures of the simulated stream, with the parameters measured live."""
    specs = []
    for name, role in (("prefill-0", RoleName.PREFILL), ("decode-0", RoleName.DECODE)):
        timer = fit(live.samples[name])
        specs.append(WorkerSpec(role, timer, live.layout, CHUNK_TOKENS, MIXED_CHUNK_TOKENS, MAX_BATCH))
    spec = ClusterSpec(specs, None, live.bandwidth_bytes_s, live.latency_s, jitter=0.0)
    return Simulation(spec, make_policy(policy), stream.requests, seed).run().figures()


def main() -> None:
    parser = arguments(__doc__, "python -m benchmarks.fidelity --requests 300")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rate", type=float, default=4.0, help="requests per second")
    parser.add_argument("--policy", default="predicted_latency")
    options = parser.parse_args()
    torch.set_num_threads(1)
    requests, rate_s = options.pick((options.requests, options.rate), (60, options.rate), (8, 8.0))
    stream = Stream.poisson(requests, rate_s, options.seed)
    with progress(2) as step:
        step("live")
        live = asyncio.run(run_live(stream, options.policy))
        step("simulated")
        simulated = run_simulation(stream, live, options.policy, options.seed)
    report = Report("fidelity", GOALS)
    report.figures = compare(live, simulated)
    report.setting = {
        "requests": len(stream.requests),
        "rate_s": rate_s,
        "policy": options.policy,
        "latency_ms": round(1000 * live.latency_s, 3),
        "bandwidth_GB_s": round(live.bandwidth_bytes_s / 1e9, 3),
        "seed": options.seed,
    }
    report.publish(options)


def compare(live: Live, simulated: dict[str, float]) -> dict[str, float]:
    """Relative errors of the means, and the figures themselves."""
    ttft = [one.latency.ttft_s for one in live.ends if one.latency.ttft_s is not None]
    tpot = [one.latency.tpot_s for one in live.ends if one.latency.tpot_s is not None]
    local = mean(one.prefill_worker == one.decode_worker for one in live.ends)
    return {
        "ttft_error": abs(simulated["ttft_s_mean"] / mean(ttft) - 1.0),
        "tpot_error": abs(simulated["tpot_s_mean"] / mean(tpot) - 1.0),
        "ttft_ms_live": 1000 * mean(ttft),
        "ttft_ms_simulated": 1000 * simulated["ttft_s_mean"],
        "ttft_p90_ms_live": 1000 * float(np.percentile(ttft, 90)),
        "ttft_p90_ms_simulated": 1000 * simulated["ttft_s_p90"],
        "tpot_ms_live": 1000 * mean(tpot),
        "tpot_ms_simulated": 1000 * simulated["tpot_s_mean"],
        "served_whole_live": local,
        "served_whole_simulated": simulated["served_locally"],
    }


if __name__ == "__main__":
    main()
