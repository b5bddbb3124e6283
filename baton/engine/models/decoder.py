"""The one model: a decoder-only transformer over paged KV, for Llama, Mistral, Qwen2 and Qwen3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from baton.engine.attention.backend import LayerAttention
from baton.engine.model_config import ModelConfig
from baton.engine.models.layers import add_linear, add_linear_norm, linear, rms_norm, silu_and_mul
from baton.engine.models.rope import FusedRotation, RopeTable, Rotation


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
    """Turns a flat batch of tokens into logits; the attention backend owns the KV."""

    def __init__(self, config: ModelConfig, parameters: dict[str, torch.Tensor]) -> None:
        self.config = config
        self.embed, self.norm = parameters["embed"], parameters["norm"]
        self.head = self.embed if config.tied_head else parameters["head"]
        self.layers = [self._layer(index, parameters) for index in range(config.num_layers)]
        self._rope = RopeTable(config, self.embed)

    @staticmethod
    def _layer(index: int, parameters: dict[str, torch.Tensor]) -> Layer:
        prefix = f"{index}."
        return Layer(**{key[len(prefix) :]: value for key, value in parameters.items() if key.startswith(prefix)})

    @property
    def matrices(self) -> list[torch.Tensor]:
        """Every matrix that a decode step multiplies with: the lower bound of its memory traffic."""
        blocks = [matrix for layer in self.layers for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        return [*blocks, self.head]

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor | None,
        attention: LayerAttention,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits `[len(rows), vocab]` float32 for the tokens at `rows` (None: all), written to `out` if given.

        Also writes every token's KV, as `hidden` does.
        """
        hidden = self.hidden(token_ids, positions, attention)
        return self.logits(hidden if rows is None else hidden[rows], out)

    def hidden(self, token_ids: torch.Tensor, positions: torch.Tensor, attention: LayerAttention) -> torch.Tensor:
        """The last layer's output `[tokens, hidden]`; also writes every token's KV.

        `token_ids` and `positions` are `[tokens]` int32 or int64; `attention` has been planned for the same batch.
        """
        eps = self.config.norm_eps
        hidden = F.embedding(token_ids, self.embed)
        rotation = self._rope.at(positions)
        normed = rms_norm(hidden, self.layers[0].attention_norm, eps)
        for index, layer in enumerate(self.layers):
            q, k, v = self._qkv(layer, normed, rotation)
            attended = attention.run(index, q, k, v)
            normed = add_linear_norm(hidden, attended.flatten(1), layer.out, layer.mlp_norm, eps)
            gated = silu_and_mul(linear(normed, layer.gate_up))
            if index + 1 < len(self.layers):
                normed = add_linear_norm(hidden, gated, layer.down, self.layers[index + 1].attention_norm, eps)
            else:
                hidden = add_linear(hidden, gated, layer.down)
        return hidden

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Logits `[rows, vocab]` float32 of rows of `hidden`, written to `out` if given."""
        if not len(hidden):  # Kernels do not accept zero rows.
            return hidden.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        logits = linear(rms_norm(hidden, self.norm, self.config.norm_eps), self.head)
        return logits.float() if out is None else out.copy_(logits)

    def _qkv(
        self, layer: Layer, hidden: torch.Tensor, rotation: Rotation | FusedRotation
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Projected, normed and rotated q `[tokens, heads, d]`, k and v `[tokens, kv_heads, d]`."""
        config = self.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = linear(hidden, layer.qkv, layer.qkv_bias).view(-1, heads + 2 * kv_heads, config.head_dim)
        v = qkv[:, heads + kv_heads :]
        if layer.q_norm is None or layer.k_norm is None:
            return *rotation.together(qkv[:, : heads + kv_heads], heads), v
        q = rms_norm(qkv[:, :heads], layer.q_norm, config.norm_eps)
        k = rms_norm(qkv[:, heads : heads + kv_heads], layer.k_norm, config.norm_eps)
        return *rotation.apart(q, k), v
