"""A worker's step times: recursive least squares over its reports, starting from a prior.

    seconds = a + b·n + c·pairs + d·B + e·K

for a step that computes n prompt tokens (attending to `pairs` positions) and decodes B sequences over K positions.
Every worker has its own model, because workers differ and change (other GPUs, throttling, neighbours).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from operator import mul

from baton.protocol.worker import StepSample

FORGETTING = 0.995
OUTLIER = 3.0  # residuals are clipped at so many typical ones: a page fault is not a trend
MIN_STEP_S = 1e-6  # a shorter time was not measured
PRIOR_SAMPLES = 1.0  # how many typical steps the prior weighs


@dataclass(frozen=True, slots=True)
class StepCosts:
    """The five coefficients, in seconds."""

    step_s: float
    prefill_token_s: float
    prefill_pair_s: float
    decode_s: float
    context_token_s: float

    def seconds(self, prefill_tokens: float, pairs: float, decodes: float = 0.0, context_tokens: float = 0.0) -> float:
        """The predicted duration of one step."""
        return (
            self.step_s
            + self.prefill_token_s * prefill_tokens
            + self.prefill_pair_s * pairs
            + self.decode_s * decodes
            + self.context_token_s * context_tokens
        )

    def prefill_s(self, new_tokens: int, cached_tokens: int, chunk_tokens: int) -> float:
        """Time to compute `new_tokens` prompt tokens after `cached_tokens`, in chunks, with nothing beside."""
        steps = -(-new_tokens // chunk_tokens)
        pairs = new_tokens * (cached_tokens + new_tokens / 2)
        return steps * self.step_s + self.prefill_token_s * new_tokens + self.prefill_pair_s * pairs


DEFAULT_COSTS = StepCosts(5e-3, 5e-5, 1e-9, 1e-4, 1e-8)
"""The prior when nothing better is known; a few seconds of steps correct it."""


@dataclass(slots=True, eq=False)
class LatencyModel:
    """One worker's model; `costs` is the current estimate. Plain floats: arrays of five cost more than they save."""

    prior: StepCosts = DEFAULT_COSTS
    samples: int = 0
    # In units of the prior every coefficient is 1, so that one covariance serves seconds and nanoseconds alike.
    _weights: list[float] = field(default_factory=lambda: [1.0] * 5)
    _covariance: list[list[float]] = field(
        default_factory=lambda: [[(one == other) / PRIOR_SAMPLES for other in range(5)] for one in range(5)]
    )
    _typical: float = 1.0  # running mean of relative residuals, which start large
    _costs: StepCosts | None = None

    @property
    def costs(self) -> StepCosts:
        if self._costs is None:
            prior, weights = self.prior, self._weights
            self._costs = StepCosts(
                prior.step_s * weights[0],
                prior.prefill_token_s * weights[1],
                prior.prefill_pair_s * weights[2],
                prior.decode_s * weights[3],
                prior.context_token_s * weights[4],
            )
        return self._costs

    def observe(self, sample: StepSample) -> None:
        """Learn from a measured step; the sums of several count as often.

        Errors are relative to the expected time, so that short steps are fitted too; relative to the measured time,
        slow steps would be underweighted.
        """
        if not MIN_STEP_S < sample.seconds < float("inf"):
            return
        prior, weights = self.prior, self._weights
        row = (
            prior.step_s * sample.steps,
            prior.prefill_token_s * sample.prefill_tokens,
            prior.prefill_pair_s * sample.prefill_pairs,
            prior.decode_s * sample.decodes,
            prior.context_token_s * sample.context_tokens,
        )
        predicted_s = sum(map(mul, row, weights))
        expected_s = max(predicted_s, sample.seconds / 20)
        residual = (sample.seconds - predicted_s) / expected_s
        bound = OUTLIER * self._typical
        self._typical += 0.05 * (min(abs(residual), bound) - self._typical)
        residual = min(max(residual, -bound), bound)
        a, b, c, d, e = [value / expected_s for value in row]
        projected = [a * v + b * w + c * x + d * y + e * z for v, w, x, y, z in self._covariance]
        forgetting = FORGETTING**sample.steps
        norm = forgetting / sample.steps + sum(map(mul, (a, b, c, d, e), projected))
        gain = residual / norm
        self._weights = [max(weight + gain * along, 0.0) for weight, along in zip(weights, projected, strict=True)]
        self._forget(projected, norm, forgetting)
        self.samples += sample.steps
        self._costs = None

    def _forget(self, projected: list[float], norm: float, forgetting: float) -> None:
        """Update the covariance. It stays symmetric, because each pair is computed once.

        Features that do not vary are not forgotten: else their covariance would grow without bound. Only theirs is
        bounded: the others must keep forgetting, or they would follow no change.
        """
        covariance, most = self._covariance, 1.0 / PRIOR_SAMPLES
        done: list[tuple[int, float, float]] = []
        for i, along in enumerate(projected):
            if not along:
                continue  # never measured: it keeps its prior
            line, own = covariance[i], along / norm
            variance = (line[i] - own * along) / forgetting
            line[i] = min(variance, most)
            shrink = sqrt(most / variance) if variance > most else 1.0
            factor = shrink / forgetting
            for j, other, shrunk in done:
                line[j] = covariance[j][i] = (line[j] - own * other) * factor * shrunk
            done.append((i, along, shrink))
