"""How long a step's linear part takes: matrix products, norms and activations, all-reduces; attention is apart.

Each matrix product costs `hypot(arithmetic, memory)`: the data sheet's times at measured efficiencies, joined by a
smooth bend. (A maximum of both promises up to half too little where they meet, at 100 to 500 tokens.) The five
kernels of a layer that multiply no matrices read and write rows. Under tensor parallelism each device has its part of
every matrix, and the devices add up their results twice per layer.

The constants are fitted to measured layers of Llama 2 and 3 (7 to 70 billion parameters) on H100 and A100 with one to
eight devices, and to all-reduces over NVLink of H100: Agrawal et al., "Vidur: A Large-Scale Simulation Framework for
LLM Inference", MLSys 2024, profiles of github.com/microsoft/vidur. `python -m benchmarks.step_times` compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import hypot, log2

from baton.engine.model_config import ModelConfig
from baton.simulator.hardware import Accelerator

BYTES = 2  # Of a bfloat16
MATRIX_EFFICIENCY = 0.72  # Of peak flops
WEIGHTS_EFFICIENCY = 0.86  # Of peak bandwidth, matrices
ROWS_EFFICIENCY = 0.60  # Of peak bandwidth, rows of norms and activations
PRODUCT_S = 1.5e-6  # Per matrix product: its launch
ROW_KERNEL_S = 5e-6  # Per kernel of the five between the products: its launch
ROW_KERNELS = 5  # Of a layer: two norms, rope, activation, residual
LINK_EFFICIENCY = 0.75  # Of the links' bandwidth
ALL_REDUCE_S, ALL_REDUCE_DOUBLING_S = 15e-6, 5e-6  # Per all-reduce, and per doubling of its devices
ALL_REDUCES = 2  # Of a layer: after attention and after the MLP


def all_reduce_seconds(num_bytes: float, devices: int, accelerator: Accelerator) -> float:
    """An all-reduce of `num_bytes` over the devices of a node, each of which sends 2 (n - 1) / n of them."""
    if devices == 1:
        return 0.0
    sent_bytes = 2 * (devices - 1) / devices * num_bytes
    launch_s = ALL_REDUCE_S + ALL_REDUCE_DOUBLING_S * log2(devices)
    return launch_s + sent_bytes / (accelerator.link_bandwidth_bytes_s * LINK_EFFICIENCY)


@dataclass(frozen=True)  # Without slots: what every step asks for is worked out once
class LinearPart:
    """The linear part of steps on `devices` accelerators in tensor parallel."""

    model: ModelConfig
    accelerator: Accelerator
    devices: int = 1

    def seconds(self, tokens: float, sampled: float) -> float:
        """A step of `tokens` tokens of which `sampled` go through the head."""
        layers = self.model.num_layers
        reduces = layers * ALL_REDUCES * self.all_reduce_seconds(tokens)
        return layers * self.layer_seconds(tokens) + reduces + self._product_seconds(*self._head, sampled)

    def layer_seconds(self, tokens: float) -> float:
        """One layer, without its attention and all-reduces."""
        products = sum(self._product_seconds(inputs, outputs, tokens) for inputs, outputs in self._products)
        return products + tokens * self._row_seconds + ROW_KERNELS * ROW_KERNEL_S

    def all_reduce_seconds(self, tokens: float) -> float:
        """One all-reduce of the hidden states of `tokens` tokens."""
        return all_reduce_seconds(BYTES * self.model.hidden_size * tokens, self.devices, self.accelerator)

    def _product_seconds(self, inputs: float, outputs: float, tokens: float) -> float:
        """Rows of `inputs` numbers times a matrix of [inputs, outputs]."""
        arithmetic_s = 2 * inputs * outputs * tokens / (self.accelerator.flops * MATRIX_EFFICIENCY)
        moved_bytes = BYTES * (inputs * outputs + tokens * (inputs + outputs))
        return PRODUCT_S + hypot(arithmetic_s, moved_bytes / (self.accelerator.bandwidth_bytes_s * WEIGHTS_EFFICIENCY))

    @cached_property
    def kv_heads(self) -> float:
        """KV heads of each device: one at least, which several devices then share."""
        return max(1.0, self.model.num_kv_heads / self.devices)

    @cached_property
    def _products(self) -> tuple[tuple[float, float], ...]:
        """A device's part of a layer's matrices, [inputs, outputs]: qkv, attention's output, gate and up, down."""
        model = self.model
        queries = model.num_heads / self.devices * model.head_dim
        inner = model.intermediate_size / self.devices
        return (
            (model.hidden_size, queries + 2 * self.kv_heads * model.head_dim),
            (queries, model.hidden_size),
            (model.hidden_size, 2 * inner),
            (inner, model.hidden_size),
        )

    @cached_property
    def _head(self) -> tuple[float, float]:
        return self.model.hidden_size, self.model.vocab_size / self.devices

    @cached_property
    def _row_seconds(self) -> float:
        """Per token and layer: two norms and the residual's addition, rope, and the activation."""
        hidden, inner = self.model.hidden_size, self.model.intermediate_size / self.devices
        rotated = self.model.num_heads / self.devices * self.model.head_dim + self.kv_heads * self.model.head_dim
        numbers = (2 + 2 + 3) * hidden + 2 * rotated + 3 * inner
        return BYTES * numbers / (self.accelerator.bandwidth_bytes_s * ROWS_EFFICIENCY)
