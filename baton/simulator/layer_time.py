"""How long a step's linear part takes: matrix products, norms and activations, all-reduces; attention is apart.

Each matrix product costs `hypot(arithmetic, memory)`: the data sheet's times at measured efficiencies, joined by a
smooth bend. (A maximum of both promises up to half too little where they meet, at 100 to 500 tokens.) The five
kernels of a layer that multiply no matrices read and write rows. Under tensor parallelism each device has its part of
every matrix, and the devices add up their results twice per layer.

A layer with experts multiplies each token with those that it takes, and reads the distinct ones among them. Every
layer of such a model is taken to have them; a shared expert takes memory, but no time. FP8
weights have half the bytes, and their products the FP8 rate where the tensor cores have one. Neither was measured: the
constants are those of bfloat16, and kernels that quantise activations are not counted.

The constants are fitted to measured layers of Llama 2 and 3 (7 to 70 billion parameters) on H100 and A100 with one to
eight devices, and to all-reduces over NVLink of H100: Agrawal et al., "Vidur: A Large-Scale Simulation Framework for
LLM Inference", MLSys 2024, profiles of github.com/microsoft/vidur. `python -m benchmarks.step_times` compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import hypot, log2

from baton.simulator.hardware import Accelerator
from baton.simulator.models import BYTES, ModelShape

MATRIX_EFFICIENCY = 0.72  # Of peak flops
WEIGHTS_EFFICIENCY = 0.86  # Of peak bandwidth, matrices
ROWS_EFFICIENCY = 0.60  # Of peak bandwidth, rows of norms and activations
PRODUCT_S = 1.5e-6  # Per matrix product: its launch
ROW_KERNEL_S = 5e-6  # Per kernel of the five between the products: its launch
ROW_KERNELS = 5  # Of a layer: two norms, rope, activation, residual
EXPERT_KERNELS = 2  # More where there are experts: their choice, and the sum of their outputs
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


@dataclass(frozen=True, slots=True)
class _Product:
    """Rows times a device's part of a matrix: seconds of their arithmetic and of moving bytes."""

    row_arithmetic_s: float
    row_memory_s: float
    matrix_s: float  # That it takes to read it
    experts: bool  # Each expert has such a matrix


@dataclass(frozen=True)  # Without slots: what every step asks for is worked out once
class LinearPart:
    """The linear part of steps on `devices` accelerators in tensor parallel."""

    model: ModelShape
    accelerator: Accelerator
    devices: int = 1

    def seconds(self, tokens: float, sampled: float) -> float:
        """A step of `tokens` tokens of which `sampled` go through the head."""
        layers = self.model.config.num_layers
        reduces = layers * ALL_REDUCES * self.all_reduce_seconds(tokens)
        return layers * self.layer_seconds(tokens) + reduces + self._product_seconds(self._head, sampled)

    def layer_seconds(self, tokens: float) -> float:
        """One layer, without its attention and all-reduces."""
        products = sum(self._product_seconds(one, tokens) for one in self._products)
        return products + tokens * self._row_seconds + self._row_kernels * ROW_KERNEL_S

    def all_reduce_seconds(self, tokens: float) -> float:
        """One all-reduce of the hidden states of `tokens` tokens."""
        return all_reduce_seconds(BYTES * self.model.config.hidden_size * tokens, self.devices, self.accelerator)

    def _product_seconds(self, product: _Product, tokens: float) -> float:
        """With experts: each row times the matrices of those that it takes, in one launch."""
        rows, matrices = tokens, 1.0
        if product.experts:
            rows, matrices = tokens * self.model.experts_per_token, self.model.distinct_experts(tokens)
        memory_s = product.row_memory_s * rows + product.matrix_s * matrices
        return PRODUCT_S + hypot(product.row_arithmetic_s * rows, memory_s)

    def _product(self, inputs: float, outputs: float, itemsize: int = BYTES, experts: bool = False) -> _Product:
        """A matrix of [inputs, outputs] numbers of so many bytes."""
        accelerator = self.accelerator
        flops = MATRIX_EFFICIENCY * (accelerator.flops if itemsize == BYTES else accelerator.fp8_flops)
        bandwidth = WEIGHTS_EFFICIENCY * accelerator.bandwidth_bytes_s
        numbers = inputs * outputs
        row_bytes = BYTES * (inputs + outputs)
        return _Product(2 * numbers / flops, row_bytes / bandwidth, itemsize * numbers / bandwidth, experts)

    @cached_property
    def kv_heads(self) -> float:
        """KV heads of each device: one at least, which several devices then share."""
        return max(1.0, self.model.config.num_kv_heads / self.devices)

    @cached_property
    def weight_bytes(self) -> float:
        """Of one device: its part of every matrix. Each device has the choice of experts whole."""
        config, choice = self.model.config, BYTES * self.model.router_parameters
        copies = self.kv_heads - config.num_kv_heads / self.devices  # KV heads that another device has, too
        more = 2 * copies * config.head_dim * config.hidden_size * config.num_layers * self.model.itemsize
        return (self.model.weight_bytes - choice) / self.devices + choice + more

    @cached_property
    def _products(self) -> tuple[_Product, ...]:
        """A device's part of a layer's matrices: qkv, attention's output, gate and up, down, the experts' choice."""
        config, itemsize, several = self.model.config, self.model.itemsize, self.model.experts > 1
        queries = config.num_heads / self.devices * config.head_dim
        inner = self.model.inner_size / self.devices
        choice = (self._product(config.hidden_size, self.model.experts),) if several else ()
        return (
            self._product(config.hidden_size, queries + 2 * self.kv_heads * config.head_dim, itemsize),
            self._product(queries, config.hidden_size, itemsize),
            self._product(config.hidden_size, 2 * inner, itemsize, several),
            self._product(inner, config.hidden_size, itemsize, several),
            *choice,
        )

    @cached_property
    def _head(self) -> _Product:
        return self._product(self.model.config.hidden_size, self.model.config.vocab_size / self.devices)

    @cached_property
    def _row_kernels(self) -> int:
        return ROW_KERNELS + (EXPERT_KERNELS if self.model.experts > 1 else 0)

    @cached_property
    def _row_seconds(self) -> float:
        """Per token and layer: two norms and the residual's addition, rope, the activation, the experts' sum."""
        config, taken = self.model.config, self.model.experts_per_token
        hidden, inner = config.hidden_size, self.model.inner_size / self.devices
        rotated = config.num_heads / self.devices * config.head_dim + self.kv_heads * config.head_dim
        summed = (taken + 1) * hidden + 2 * self.model.experts if self.model.experts > 1 else 0
        numbers = (2 + 2 + 3) * hidden + 2 * rotated + 3 * taken * inner + summed
        return BYTES * numbers / (self.accelerator.bandwidth_bytes_s * ROWS_EFFICIENCY)
