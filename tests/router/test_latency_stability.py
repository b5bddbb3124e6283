"""The latency model over long times: it stays true, and it follows a worker that changes."""

from __future__ import annotations

import random

from baton.protocol.worker import StepSample
from baton.router.policy.latency_model import LatencyModel


def seconds(prefill: int, pairs: int, decodes: int, context: int) -> float:
    return 0.004 + 5e-5 * prefill + 1e-9 * pairs + 1e-4 * decodes + 1e-8 * context


def test_stays_true_over_many_steps() -> None:
    rng, model = random.Random(1), LatencyModel()
    for index in range(40_000):
        features = (rng.randint(0, 2000), rng.randint(0, 20_000_000), rng.randint(0, 60), rng.randint(0, 1_000_000))
        true = seconds(*features)
        model.observe(StepSample(*features, true * rng.lognormvariate(0.0, 0.02)))
        if index > 500:
            assert abs(model.costs.seconds(*features) / true - 1) < 0.1


def test_a_decode_worker_that_slows_down_is_followed() -> None:
    rng, model = random.Random(2), LatencyModel()
    for index in range(11_000):
        decodes = rng.randint(1, 64)
        features = (0, 0, decodes, decodes * rng.randint(500, 1500))
        model.observe(StepSample(*features, (1 if index < 10_000 else 2) * seconds(*features)))
    assert abs(model.costs.seconds(0, 0, 32, 32_000) / seconds(0, 0, 32, 32_000) - 2) < 0.2
