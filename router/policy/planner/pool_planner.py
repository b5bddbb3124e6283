"""The best split into prefill and decode workers, from demand and the capacity of a worker of each pool.

Demand is two exponential averages of arrivals: the slow one, unless the fast one differs by more than noise
explains. Both pools' work over the next HORIZON_S (waiting, running, arriving) is measured in worker-seconds; the
best split is the one whose more loaded pool has the least load. docs/pool_planner.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from baton.protocol.worker import RoleName, WorkerInfo
from baton.router.policy.cluster_state import ClusterState, WorkerView
from baton.router.policy.latency_model import StepCosts
from baton.router.policy.placement import PlacementInput

FAST_S, SLOW_S = 8.0, 60.0  # time constants of the two averages
CHANCE = 3.0  # standard errors within which the fast average is noise
HORIZON_S = 20.0  # over which work is projected
MARGIN, PRESSED_MARGIN = 0.15, 0.05  # relative gain that a change needs: usually, and once a pool is PRESSED
PRESSED = 0.9  # load of the busier pool
WORRY = 0.7  # load of the busier pool below which no worker moves
PAYBACK_S = 60.0  # time in which a switch must earn back the worker time it costs
TPOT_SHARE = 0.95  # of the objective that a planned decode step takes
PAGES_SHARE = 0.9  # of a worker's pages that a planned batch fills
MIXED_SHARE = 0.9  # of the objective that a step with a chunk of a prompt may take (the placement's own bound)
LOCAL_EFFICIENCY = 0.7  # of a decode worker's spare time, when it runs whole requests

REQUESTS, NEW, PAIRS, OUTPUT, READ, STATED, TPOT = range(7)
"""What is counted of an arrival: one; prompt tokens to compute; attention pairs; output tokens; positions that its
decode steps read; one if it states a TPOT objective; that objective (s)."""


@dataclass(frozen=True, slots=True)
class Advice:
    """The recommended split and the reason; it is the present one unless another is clearly better."""

    prefill: int
    decode: int
    why: str
    prompt_tokens_per_s: float  # expected and not cached
    output_tokens_per_s: float


@dataclass(eq=False)
class Demand:
    """The arrival rates."""

    fast: np.ndarray = field(default_factory=lambda: np.zeros(7))
    slow: np.ndarray = field(default_factory=lambda: np.zeros(7))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(7))  # variance of `fast`
    start_s: float | None = None
    now_s: float = 0.0

    def add(self, counted: Sequence[float], now: float) -> None:
        self._pass(now)
        if self.start_s is None:
            self.start_s = now
        values = np.asarray(counted, float)
        self.fast += values / FAST_S
        self.slow += values / SLOW_S
        self.squares += (values / FAST_S) ** 2

    def _pass(self, now: float) -> None:
        elapsed = max(now - self.now_s, 0.0)
        self.fast *= np.exp(-elapsed / FAST_S)
        self.slow *= np.exp(-elapsed / SLOW_S)
        self.squares *= np.exp(-2 * elapsed / FAST_S)
        self.now_s = now

    def rates(self, now: float) -> np.ndarray:
        """Per second, by REQUESTS, NEW, …"""
        self._pass(now)
        if self.start_s is None:
            return np.zeros(7)
        # Both averages started at zero: correct for that, from the first second on.
        age = max(now - self.start_s, 1.0)
        fast = self.fast / (1 - np.exp(-age / FAST_S))
        slow = self.slow / (1 - np.exp(-age / SLOW_S))
        error = np.sqrt(self.squares) + 1e-9
        changed = np.abs(fast - slow)[[NEW, OUTPUT]] > CHANCE * error[[NEW, OUTPUT]]
        return np.asarray(fast if changed.any() else slow)


@dataclass(frozen=True, slots=True)
class Projection:
    """Both pools' work over the horizon, as the number of workers it keeps busy."""

    prefill: float
    decode: float
    spare: float = 0.0  # prompt work that a decode worker does in spare time, relative to a prefill worker

    def load(self, prefill: int, decode: int) -> float:
        """The load of the busier pool; above 1 it cannot keep up."""
        decoding = self.decode / decode
        shared = (self.prefill + self.spare * self.decode) / (prefill + self.spare * decode)
        return max(decoding, min(self.prefill / prefill, shared))

    def best(self, workers: int) -> int:
        """Prefill workers of the best split; of equal ones the fewest."""
        return min(range(1, workers), key=lambda prefill: (self.load(prefill, workers - prefill), prefill))


@dataclass(eq=False)
class PoolPlanner:
    """`switch_s` is the cost of a switch: how long a worker was away for it recently."""

    demand: Demand = field(default_factory=Demand)
    switch_s: float = 3.0

    def on_arrival(
        self, prompt_tokens: int, new_tokens: int, output_tokens: float, tpot_s: float | None, now: float
    ) -> None:
        """A request arrived: its prompt, its uncached tokens, its expected output."""
        pairs = new_tokens * (prompt_tokens - new_tokens / 2)
        read = output_tokens * (prompt_tokens + output_tokens / 2)
        self.demand.add((1, new_tokens, pairs, output_tokens, read, tpot_s is not None, tpot_s or 0.0), now)

    def on_switched(self, seconds: float) -> None:
        """A worker was away for `seconds` to change its role."""
        self.switch_s += 0.3 * (seconds - self.switch_s)

    def advise(
        self, state: ClusterState, queued: Iterable[PlacementInput], drift: float, now: float, local: bool
    ) -> Advice | None:
        """None while there are no workers to divide, or demand is unknown.

        `drift` is the ratio of recent answers to their prediction; `whole`: whether the placement lets decode workers
        run whole requests.
        """
        prefill, decode = state.pool(RoleName.PREFILL), state.pool(RoleName.DECODE)
        workers = len(prefill) + len(decode)
        rates = self.demand.rates(now).copy()
        rates[[OUTPUT, READ]] *= drift
        if workers < 2 or rates[REQUESTS] <= 0.0:
            return None
        work = project(rates, prefill, decode, queued, now, local)
        best = work.best(workers)
        new, output = float(rates[NEW]), float(rates[OUTPUT])
        expected = (
            f"{new:,.0f} prompt and {output:,.0f} output tokens/s keep {work.prefill:.1f} + {work.decode:.1f} busy"
        )
        if not prefill or not decode:
            return Advice(best, workers - best, f"a pool is empty; {expected}", new, output)
        present, better = work.load(len(prefill), len(decode)), work.load(best, workers - best)
        moves = abs(best - len(prefill))
        margin = MARGIN if present < PRESSED else PRESSED_MARGIN
        needed = (1 + margin + moves * self.switch_s / (workers * PAYBACK_S)) * better
        if not moves:
            return Advice(best, workers - best, f"{expected}: no split is better", new, output)
        loads = f"the worse pool's load is {100 * present:.0f} %, with {best} + {workers - best} {100 * better:.0f} %"
        if present < WORRY or present <= needed:
            reason = "all is well" if present < WORRY else "too little to move for"
            return Advice(len(prefill), len(decode), f"{expected}: {loads}, {reason}", new, output)
        return Advice(best, workers - best, f"{expected}: {loads}", new, output)


def project(
    rates: np.ndarray,
    prefill: Sequence[WorkerView],
    decode: Sequence[WorkerView],
    queued: Iterable[PlacementInput],
    now: float,
    local: bool,
) -> Projection:
    """The future work of both pools, priced by the workers' own latency models."""
    computing, decoding = mean_costs(prefill or decode), mean_costs(decode or prefill)
    info = (decode or prefill)[0].info
    waiting = list(queued)
    requests, output = max(float(rates[REQUESTS]), 1e-9), max(float(rates[OUTPUT]), 1e-9)
    context = float(rates[READ]) / output
    tpot_s = TPOT_SHARE * float(rates[TPOT] / rates[STATED]) if rates[STATED] > 0 else float("inf")
    batch = planned_batch(decoding, context, tpot_s, info.capacity_tokens, info.max_batch)
    step_s = decoding.seconds(0, 0, batch, batch * context)

    token_s = computing.step_s / info.chunk_tokens + computing.prefill_token_s
    coming_s = token_s * float(rates[NEW]) + computing.prefill_pair_s * float(rates[PAIRS])
    begun_s = sum(max(view.backlog_ends_s - now, 0.0) for view in (*prefill, *decode))
    waiting_s = len(waiting) * coming_s / requests
    prefilling = coming_s + (begun_s + waiting_s) / HORIZON_S

    steps = HORIZON_S / step_s  # of a sequence within the horizon
    sequences = [one for view in (*prefill, *decode) for one in view.running.values()]
    running = sum(min(one.output.remaining(one.emitted), steps) for one in sequences)
    answer = output / requests
    in_time = 1 - answer / (2 * steps) if answer < steps else steps / (2 * answer)  # of arrivals within it
    tokens = running + len(waiting) * min(answer, steps) + HORIZON_S * output * in_time
    busy = tokens * step_s / batch / HORIZON_S

    each_s = decoding.decode_s + decoding.context_token_s * context
    beside_s = each_s * batch * min(busy / max(len(decode), 1), 1.0)
    spare = LOCAL_EFFICIENCY if local and fits_beside(rates, computing, info, beside_s, tpot_s) else 0.0
    return Projection(prefilling, busy, spare)


def fits_beside(rates: np.ndarray, costs: StepCosts, info: WorkerInfo, beside_s: float, tpot_s: float) -> bool:
    """Whether decode workers may prefill: a chunk beside their decodes meets the objective by the placement's bound."""
    chunk = info.mixed_chunk_tokens or info.chunk_tokens
    new = float(rates[NEW])
    if tpot_s == float("inf"):
        return new <= chunk * float(rates[REQUESTS])
    step_s = costs.seconds(chunk, chunk * float(rates[PAIRS]) / max(new, 1e-9)) + beside_s
    return step_s <= MIXED_SHARE * tpot_s / TPOT_SHARE


def mean_costs(views: Sequence[WorkerView]) -> StepCosts:
    """The mean step costs of these workers, by their latency models."""
    costs = [view.latency.costs for view in views]
    names = ("step_s", "prefill_token_s", "prefill_pair_s", "decode_s", "context_token_s")
    return StepCosts(*(sum(getattr(one, name) for one in costs) / len(costs) for name in names))


def planned_batch(costs: StepCosts, context: float, tpot_s: float, capacity_tokens: int, max_batch: int) -> float:
    """Sequences of so many tokens that decode together within `tpot_s` and within a worker's pages; at least one."""
    fitting = PAGES_SHARE * capacity_tokens / max(context, 1.0)
    each_s = costs.decode_s + costs.context_token_s * context
    in_time = (tpot_s - costs.step_s) / each_s if each_s > 0 else float("inf")
    return max(1.0, min(fitting, in_time, float(max_batch)))
