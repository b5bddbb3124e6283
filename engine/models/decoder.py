"""The one model: a decoder-only transformer over paged KV, for Llama, Mistral, Qwen2 and Qwen3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine.attention.backend import AttentionBackend
from engine.model_config import ModelConfig
from engine.models.layers import add_linear, apply_rope, linear, rms_norm, rope_table, silu_and_mul


@dataclass(frozen=True, slots=True)
class Layer:
    """One block's parameters; optional ones are None where the family has none."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    qkv_bias: torch.Tensor | None = None
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None


class Decoder:
    """Turns a flat batch of tokens into logits; attention and KV are the backend's."""

    def __init__(self, config: ModelConfig, parameters: dict[str, torch.Tensor]) -> None:
        self.config = config
        self.embed, self.norm = parameters["embed"], parameters["norm"]
        self.head = self.embed if config.tied_head else parameters["head"]
        self.layers = [self._layer(index, parameters) for index in range(config.num_layers)]
        cos, sin = rope_table(config, str(self.embed.device))
        self._cos, self._sin = cos.to(self.embed.dtype), sin.to(self.embed.dtype)

    @staticmethod
    def _layer(index: int, parameters: dict[str, torch.Tensor]) -> Layer:
        prefix = f"{index}."
        return Layer(**{key[len(prefix) :]: value for key, value in parameters.items() if key.startswith(prefix)})

    @property
    def matrices(self) -> list[torch.Tensor]:
        """Every matrix one decode step multiplies with: what its memory traffic cannot go below."""
        blocks = [matrix for layer in self.layers for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        return [*blocks, self.head]

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, attention: AttentionBackend
    ) -> torch.Tensor:
        """Logits `[len(rows), vocab]` float32 for the tokens at `rows`, writing every token's KV on the way.

        `token_ids` and `positions` are `[tokens]` int64; `attention` was planned for the same batch.
        """
        config = self.config
        hidden = F.embedding(token_ids, self.embed)
        cos, sin = self._cos[positions], self._sin[positions]
        for index, layer in enumerate(self.layers):
            normed = rms_norm(hidden, layer.attention_norm, config.norm_eps)
            q, k, v = self._qkv(layer, normed, cos, sin)
            attended = attention.run(index, q, k, v)
            hidden = add_linear(hidden, attended.flatten(1), layer.out)
            normed = rms_norm(hidden, layer.mlp_norm, config.norm_eps)
            hidden = add_linear(hidden, silu_and_mul(linear(normed, layer.gate_up)), layer.down)
        last = rms_norm(hidden[rows], self.norm, config.norm_eps)
        return linear(last, self.head).float()

    def _qkv(
        self, layer: Layer, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Projected, normed and rotated q `[tokens, heads, d]`, k and v `[tokens, kv_heads, d]`."""
        config = self.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = linear(hidden, layer.qkv, layer.qkv_bias).view(-1, heads + 2 * kv_heads, config.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = rms_norm(qkv[:, :heads], layer.q_norm, config.norm_eps)
            k = rms_norm(qkv[:, heads : heads + kv_heads], layer.k_norm, config.norm_eps)
            return apply_rope(q, cos, sin), apply_rope(k, cos, sin), qkv[:, heads + kv_heads :]
        rotated = apply_rope(qkv[:, : heads + kv_heads], cos, sin)
        return rotated[:, :heads], rotated[:, heads:], qkv[:, heads + kv_heads :]
