"""The one model: a decoder-only transformer over paged KV, for every family of the table.

Several ranks divide it: each has a part of the heads, of the MLP's columns and of the vocabulary. Partial sums are
added up after the embedding, each attention and each MLP. Rank 0 gathers the columns of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from baton.engine.attention.backend import LayerAttention
from baton.engine.model_config import ModelConfig
from baton.engine.models.layers import add_linear, add_linear_norm, linear, rms_norm
from baton.engine.models.mlp import Mlp, mlp_of
from baton.engine.models.rope import FusedRotation, RopeTable, Rotation
from baton.engine.ranks import ONE_RANK, Ranks


@dataclass(frozen=True, slots=True)
class Layer:
    """One block's parameters and its MLP; optional parameters are None where the family has none."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    mlp_norm: torch.Tensor
    mlp: Mlp
    qkv_bias: torch.Tensor | None = None
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None


class Decoder:
    """Turns a flat batch of tokens into logits; the attention backend owns the KV.

    `config` is the whole model's, `parameters` are the rank's. All ranks call each method with the same arguments.
    """

    def __init__(self, config: ModelConfig, parameters: dict[str, torch.Tensor], ranks: Ranks = ONE_RANK) -> None:
        self.config = config
        self._ranks = ranks
        self._own = config.slice(self._ranks.num_ranks, self._ranks.rank)
        self.embed, self.norm = parameters["embed"], parameters["norm"]
        self.head = self.embed if config.tied_head else parameters["head"]
        self.layers = [self._layer(index, parameters) for index in range(config.num_layers)]
        self._rope = RopeTable(config, self.embed)

    def _layer(self, index: int, parameters: dict[str, torch.Tensor]) -> Layer:
        prefix, own = f"{index}.", {field.name for field in fields(Layer)}
        named = {key[len(prefix) :]: value for key, value in parameters.items() if key.startswith(prefix)}
        attention = {name: value for name, value in named.items() if name in own}
        return Layer(**attention, mlp=mlp_of(named, self._own.experts))

    @property
    def matrices(self) -> list[torch.Tensor]:
        """Every matrix that a decode step multiplies with: the lower bound of its memory traffic."""
        blocks = [matrix for layer in self.layers for matrix in (layer.qkv, layer.out, *layer.mlp.matrices)]
        return [*blocks, self.head]

    @property
    def recordable(self) -> bool:
        """Whether no part of a step waits for the device, so that steps can be recorded."""
        return all(layer.mlp.recordable for layer in self.layers)

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
        hidden, ranks = self._embedded(token_ids), self._ranks
        rotation = self._rope.at(positions)
        normed = rms_norm(hidden, self.layers[0].attention_norm, eps)
        for index, layer in enumerate(self.layers):
            q, k, v = self._qkv(layer, normed, rotation)
            attended = attention.run(index, q, k, v)
            normed = add_linear_norm(hidden, attended.flatten(1), layer.out, layer.mlp_norm, eps, ranks)
            gated = layer.mlp(normed)
            if index + 1 < len(self.layers):
                next_norm = self.layers[index + 1].attention_norm
                normed = add_linear_norm(hidden, gated, layer.mlp.down, next_norm, eps, ranks)
            else:
                hidden = add_linear(hidden, gated, layer.mlp.down, ranks)
        return hidden

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Logits `[rows, vocab]` float32 of rows of `hidden`, written to `out` if given; of float64 weights, float64.

        Only rank 0 has all columns; the others' results mean nothing.
        """
        if not len(hidden):  # Kernels do not accept zero rows.
            return hidden.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        columns = linear(rms_norm(hidden, self.norm, self.config.norm_eps), self.head)
        logits = self._ranks.gather_columns(columns)[:, : self.config.vocab_size].contiguous()
        return logits.to(torch.promote_types(logits.dtype, torch.float32)) if out is None else out.copy_(logits)

    def _embedded(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The embeddings `[tokens, hidden]`; a rank looks up the tokens of its part of the vocabulary."""
        if self._ranks.num_ranks == 1:
            return F.embedding(token_ids, self.embed)
        rows = token_ids - self._ranks.rank * self._own.vocab_size
        elsewhere = (rows < 0) | (rows >= self._own.vocab_size)
        embedded = F.embedding(rows.masked_fill_(elsewhere, 0), self.embed)
        return self._ranks.all_reduce(embedded.masked_fill_(elsewhere[:, None], 0))

    def _qkv(
        self, layer: Layer, hidden: torch.Tensor, rotation: Rotation | FusedRotation
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Projected, normed and rotated q `[tokens, heads, d]`, k and v `[tokens, kv_heads, d]`."""
        config = self._own
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = linear(hidden, layer.qkv, layer.qkv_bias).view(-1, heads + 2 * kv_heads, config.head_dim)
        v = qkv[:, heads + kv_heads :]
        if layer.q_norm is None or layer.k_norm is None:
            return *rotation.together(qkv[:, : heads + kv_heads], heads), v
        q = rms_norm(qkv[:, :heads], layer.q_norm, config.norm_eps)
        k = rms_norm(qkv[:, heads : heads + kv_heads], layer.k_norm, config.norm_eps)
        return *rotation.apart(q, k), v
