"""A worker's step times: recursive least squares over its reports, starting from a prior.

    seconds = a + b·n + c·pairs + d·B + e·K

for a step that computes n prompt tokens (attending to `pairs` positions) and decodes B sequences over K positions.
Every worker has its own model, because workers differ and change (other GPUs, throttling, neighbours).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

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


@dataclass(eq=False)
class LatencyModel:
    """One worker's model; `costs` is the current estimate."""

    prior: StepCosts = DEFAULT_COSTS
    samples: int = 0
    _weights: np.ndarray = field(init=False)
    _covariance: np.ndarray = field(init=False)
    _typical: float = 1.0  # running mean of relative residuals, which start large
    _costs: StepCosts | None = None

    def __post_init__(self) -> None:
        # In units of the prior every coefficient is 1, so that one covariance serves seconds and nanoseconds alike.
        self._weights = np.ones(5)
        self._covariance = np.eye(5) * (1.0 / PRIOR_SAMPLES)
        self._scale = np.array(
            [
                self.prior.step_s,
                self.prior.prefill_token_s,
                self.prior.prefill_pair_s,
                self.prior.decode_s,
                self.prior.context_token_s,
            ]
        )

    @property
    def costs(self) -> StepCosts:
        if self._costs is None:
            self._costs = StepCosts(*(np.maximum(self._weights, 0.0) * self._scale).tolist())
        return self._costs

    def observe(self, sample: StepSample) -> None:
        """Learn from one measured step.

        Errors are relative to the expected time, so that short steps are fitted too; relative to the measured time,
        slow steps would be underweighted.
        """
        if not MIN_STEP_S < sample.seconds < float("inf"):
            return
        features = np.array([1.0, sample.prefill_tokens, sample.prefill_pairs, sample.decodes, sample.context_tokens])
        row = features * self._scale
        expected = max(float(row @ self._weights), sample.seconds / 20)
        row = row / expected
        residual = sample.seconds / expected - float(row @ self._weights)
        bound = OUTLIER * self._typical
        self._typical += 0.05 * (min(abs(residual), bound) - self._typical)
        residual = min(max(residual, -bound), bound)
        projected = self._covariance @ row
        gain = projected / (FORGETTING + float(row @ projected))
        self._weights = np.maximum(self._weights + gain * residual, 0.0)
        self._covariance = (self._covariance - gain[:, None] * projected) / FORGETTING
        # Features that do not vary are not forgotten: else their covariance would grow without bound.
        # Only theirs is bounded: the others must keep forgetting, or they would follow no change.
        excess = self._covariance.diagonal() * PRIOR_SAMPLES
        if excess.max() > 1.0:
            shrink = 1.0 / np.sqrt(np.maximum(excess, 1.0))
            self._covariance *= shrink[:, None] * shrink
        self._covariance = (self._covariance + self._covariance.T) / 2  # rounding grows with what is forgotten
        self.samples += 1
        self._costs = None
