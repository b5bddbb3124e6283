"""What a simulation measured, in the field's terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from baton.protocol.gateway_messages import RequestEnded
from baton.protocol.request import Objectives
from baton.protocol.worker import RoleName
from baton.simulator.trace import TraceRequest
from baton.simulator.worker import Answer, Answers


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request's end."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    error: str
    good: bool  # it met its objectives
    local: bool
    attempts: int

    @classmethod
    def of(
        cls, traced: TraceRequest, objectives: Objectives, end: RequestEnded, answer: Answer | None, arrival_s: float
    ) -> Outcome:
        """`arrival_s` is on the clock of the answer's times, at which its tokens reached the gateway."""
        ttft = answer.first_s - arrival_s if answer is not None else None
        gaps = answer.num_tokens - 1 if answer is not None else 0
        tpot = (answer.last_s - answer.first_s) / gaps if answer is not None and gaps else None
        good = not end.error and ttft is not None
        good = good and (objectives.ttft_s is None or (ttft or 0.0) <= objectives.ttft_s)
        good = good and (objectives.tpot_s is None or (tpot or 0.0) <= objectives.tpot_s)
        return cls(
            arrival_s=traced.arrival_s,
            prompt_tokens=traced.prompt_tokens,
            output_tokens=answer.num_tokens if answer is not None else 0,
            cached_tokens=answer.cached_tokens if answer is not None else 0,
            ttft_s=ttft,
            tpot_s=tpot,
            error=end.error,
            good=good,
            local=end.prefill_worker == end.decode_worker != "",
            attempts=end.attempts,
        )


@dataclass(frozen=True, slots=True)
class WorkerUse:
    """What one worker did. `role` is its last one; `pages_in_use` at the end must be none."""

    name: str
    role: RoleName
    switches: int  # of its role
    busy_s: float
    tokens_computed: int
    pages_in_use: int


@dataclass(frozen=True, slots=True)
class BusyMoment:
    """What the pools had done by a moment, in seconds over their workers: how long they had computed, and existed."""

    time_s: float
    busy_s: dict[RoleName, float]
    present_s: dict[RoleName, float]  # since the first request came

    def utilisation(self, role: RoleName) -> float:
        """The share of its workers' time in which a pool computed."""
        return min(self.busy_s.get(role, 0.0) / max(self.present_s[role], 1e-9), 1.0)


@dataclass(eq=False)
class SimulationResult:
    """A run's outcomes and figures; `figures` is flat, for JSON."""

    outcomes: Sequence[Outcome]
    workers: Sequence[WorkerUse]
    answers: Answers
    bytes_moved: int
    arrivals_s: float  # the time over which requests came
    simulated_s: float
    events: int
    busy: Sequence[BusyMoment] = ()  # the last one at the end
    last_arrival: BusyMoment | None = None

    @property
    def span_s(self) -> float:
        """Seconds that rates refer to: those over which requests came, or the whole run where all came at once."""
        return self.arrivals_s if self.arrivals_s > 0 else max(self.simulated_s, 1e-9)

    @property
    def attainment(self) -> float:
        """Share of all requests, refused ones included, that met their objectives."""
        return sum(outcome.good for outcome in self.outcomes) / max(len(self.outcomes), 1)

    @property
    def goodput(self) -> float:
        """Requests per second that met their objectives."""
        return sum(outcome.good for outcome in self.outcomes) / self.span_s

    @property
    def longest_tenth_attainment(self) -> float:
        """The same for the tenth of requests with the longest prompts, which are the first to be late."""
        longest = sorted(self.outcomes, key=lambda outcome: outcome.prompt_tokens)[-max(len(self.outcomes) // 10, 1) :]
        return sum(outcome.good for outcome in longest) / max(len(longest), 1)

    def figures(self) -> dict[str, float]:
        done = [outcome for outcome in self.outcomes if not outcome.error]
        figures: dict[str, float] = {
            "requests": len(self.outcomes),
            "requests_per_s": len(self.outcomes) / self.span_s,
            "refused": sum(outcome.error == "Overloaded" for outcome in self.outcomes),
            "failed": sum(outcome.error not in ("", "Overloaded") for outcome in self.outcomes),
            "slo_attainment": self.attainment,
            "slo_attainment_longest_tenth": self.longest_tenth_attainment,
            "goodput": self.goodput,
        }
        figures |= _percentiles("ttft_s", [outcome.ttft_s for outcome in done if outcome.ttft_s is not None])
        figures |= _percentiles("tpot_s", [outcome.tpot_s for outcome in done if outcome.tpot_s is not None])
        figures |= self._itl()
        # After the last arrival the cluster only empties; where all came at once, there is nothing else.
        moment = self.last_arrival if self.arrivals_s > 0 else None
        moment = moment or (self.busy[-1] if self.busy else BusyMoment(0.0, {}, {}))
        for role in moment.present_s:
            figures[f"utilisation_{role.value}"] = moment.utilisation(role)
        figures["role_switches"] = sum(worker.switches for worker in self.workers)
        prompts = sum(outcome.prompt_tokens for outcome in done)
        figures["output_tokens_per_s"] = sum(outcome.output_tokens for outcome in done) / max(self.simulated_s, 1e-9)
        figures["prefix_hit_rate"] = sum(outcome.cached_tokens for outcome in done) / max(prompts, 1)
        figures["served_locally"] = sum(outcome.local for outcome in done) / max(len(done), 1)
        figures["bytes_moved"] = self.bytes_moved
        figures["simulated_s"] = self.simulated_s
        figures["events"] = self.events
        return figures

    def _itl(self) -> dict[str, float]:
        if not self.answers.seconds:
            return {}
        order = np.argsort(self.answers.seconds)
        seconds = np.asarray(self.answers.seconds)[order]
        below = np.cumsum(np.asarray(self.answers.counts)[order])
        return {
            f"itl_s_p{share}": float(seconds[np.searchsorted(below, below[-1] * share / 100)]) for share in (50, 90, 99)
        }


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    shares: dict[str, Any] = {f"{name}_p{share}": float(np.percentile(values, share)) for share in (50, 90, 99)}
    return {f"{name}_mean": float(np.mean(values)), **shares}
