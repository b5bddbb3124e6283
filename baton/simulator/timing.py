"""How long a step takes on an accelerator that is not here: a roofline with measured efficiencies.

A step's linear part (`layer_time`) reads the weights once and multiplies them by its tokens; attention adds its own:
prefill's is compute, decode's reads the KV. Fitted coefficients (`StepCosts`) are the other timing model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from baton.engine.model_config import check_ranks
from baton.protocol.errors import ConfigError
from baton.protocol.worker import MAX_RANKS, PageLayout
from baton.router.policy.latency_model import DEFAULT_COSTS, StepCosts
from baton.simulator.hardware import Accelerator
from baton.simulator.layer_time import LinearPart
from baton.simulator.models import BYTES, ModelShape

ATTENTION_EFFICIENCY = 0.45  # of peak flops, prefill attention
BANDWIDTH_EFFICIENCY = 0.80  # of peak bandwidth, KV
HOST_EFFICIENCY = 0.80  # of the link to the host, copies of whole pages
OVERHEAD_S = 0.8e-3  # per step: sampling, the host
SEQUENCE_S = 10e-6  # per decoding sequence: sampling and bookkeeping
MEMORY_SHARE = 0.9  # of the device, for weights, activations and KV
ACTIVATIONS_BYTES = 3 * 10**9


class StepTimer(Protocol):
    """Seconds of a step that computes `prefill_tokens` (attending to `pairs`) and decodes over `context_tokens`.

    Linear in `context_tokens`.
    """

    def seconds(self, prefill_tokens: float, pairs: float, decodes: float, context_tokens: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things take under faults. Messages take `message_s` on average, one in twenty ten times as long."""

    steps: StepTimer = DEFAULT_COSTS
    jitter: float = 0.2  # standard deviation of the logarithm of a step's time
    message_s: float = 0.5e-3
    write_s: float = 1e-3  # mean delay of a write, beside its time on the links
    bandwidth_bytes_s: float = 1e6  # of a worker's link, in one direction

    def message(self, rng: random.Random) -> float:
        mean_s = self.message_s if rng.random() < 0.95 else 10 * self.message_s
        return rng.expovariate(1.0 / mean_s)


@dataclass(frozen=True)  # without slots: what every step asks for is worked out once
class Roofline:
    """One worker of `devices` accelerators in tensor parallel, each of which runs one of its ranks."""

    model: ModelShape
    accelerator: Accelerator
    devices: int = 1

    @cached_property
    def _linear(self) -> LinearPart:
        return LinearPart(self.model, self.accelerator, self.devices)

    @cached_property
    def _kv_bytes_per_device(self) -> float:
        """Of a token, copies of heads that several devices have included."""
        return 2 * BYTES * self.model.config.num_layers * self._linear.kv_heads * self.model.config.head_dim

    @cached_property
    def _pair_flops(self) -> float:
        """Query times key and weight times value, for all heads and layers."""
        return 4.0 * self.model.config.num_layers * self.model.config.num_heads * self.model.config.head_dim

    def seconds(self, prefill_tokens: float, pairs: float, decodes: float, context_tokens: float) -> float:
        flops = self.accelerator.flops * self.devices * ATTENTION_EFFICIENCY
        bandwidth = self.accelerator.bandwidth_bytes_s * BANDWIDTH_EFFICIENCY
        linear = self._linear.seconds(prefill_tokens + decodes, max(1.0, decodes))
        attention = pairs * self._pair_flops / flops + context_tokens * self._kv_bytes_per_device / bandwidth
        return linear + attention + OVERHEAD_S + SEQUENCE_S * decodes

    @property
    def host_bandwidth_bytes_s(self) -> float:
        """Of copies between one device's pages and host memory."""
        return self.accelerator.host_bandwidth_bytes_s * HOST_EFFICIENCY

    def prior(self) -> StepCosts:
        """The data sheet's own promise, without efficiencies: where a router begins before it has measured.

        A step reads all experts, though one of few sequences does not.
        """
        flops, bandwidth = self.accelerator.flops * self.devices, self.accelerator.bandwidth_bytes_s
        return StepCosts(
            step_s=self._linear.weight_bytes / bandwidth,
            prefill_token_s=2.0 * self.model.active_parameters / flops,
            prefill_pair_s=self._pair_flops / flops,
            decode_s=SEQUENCE_S,
            context_token_s=self._kv_bytes_per_device / bandwidth,
        )

    def page_bytes(self, page_size: int) -> int:
        """Bytes of a page over all devices, copies of heads that several have included."""
        return int(self._kv_bytes_per_device * self.devices * page_size)

    def page_layout(self, page_size: int) -> PageLayout:
        """The KV pages that fit beside the weights; raises `ConfigError` when the weights alone do not fit."""
        memory = self.accelerator.memory_bytes * MEMORY_SHARE - self._linear.weight_bytes - ACTIVATIONS_BYTES
        num_pages = int(memory // (self._kv_bytes_per_device * page_size))
        if num_pages * page_size < 1024:
            raise ConfigError(
                f"The model's weights take {self.model.weight_bytes / 1e9:.0f} GB: too much for {self.devices} × "
                f"{self.accelerator.name}; give a worker more of them with --tensor-parallel."
            )
        return self.model.config.page_layout(num_pages, page_size, "bfloat16", "simulated")


def roofline(model: ModelShape, accelerator: Accelerator, devices: int | None = None) -> Roofline:
    """A worker with `devices` accelerators, or with the fewest (1, 2, 4, …) that leave a third of memory for KV.

    Raises `ConfigError` for a number of them that does not divide the model.
    """
    if devices is None:
        devices = 1
        while model.weight_bytes > 0.6 * accelerator.memory_bytes * devices and devices < MAX_RANKS:
            devices *= 2
    check_ranks(model.config, devices)
    return Roofline(model, accelerator, devices)
