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
from baton.engine.models.layers import linear, norm_all_heads, rms_norm
from baton.engine.models.mlp import Mlp, mlp_of
from baton.engine.models.residual import Join, NormAfter, NormBefore
from baton.engine.models.rope import FusedRotation, NoRotation, RopeTable, Rotation
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
    out_bias: torch.Tensor | None = None
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
        self._joins = [self._joins_of(index) for index in range(config.num_layers)]
        self._rope = RopeTable(config.rope, config.head_dim, self.embed)
        # Attention multiplies by 1/sqrt(head_dim); the queries take the rest of another scale.
        self._query_scale = (config.scales.attention or config.head_dim**-0.5) * config.head_dim**0.5

    def _layer(self, index: int, parameters: dict[str, torch.Tensor]) -> Layer:
        prefix, own = f"{index}.", {field.name for field in fields(Layer)}
        named = {key[len(prefix) :]: value for key, value in parameters.items() if key.startswith(prefix)}
        attention = {name: value for name, value in named.items() if name in own}
        return Layer(**attention, mlp=mlp_of(named, self._own.experts))

    def _joins_of(self, index: int) -> tuple[Join, Join]:
        """How the outputs of a layer's attention and MLP are added to the residual."""
        layer, eps, scale, ranks = self.layers[index], self.config.norm_eps, self.config.scales.residual, self._ranks
        out, down = (layer.out, layer.out_bias), (layer.mlp.down, layer.mlp.down_bias)
        if self.config.norms_after:
            norms = (layer.attention_norm, layer.mlp_norm)
            return NormAfter(*out, norms[0], eps, scale, ranks), NormAfter(*down, norms[1], eps, scale, ranks)
        following = self.layers[index + 1].attention_norm if index + 1 < len(self.layers) else None
        return NormBefore(*out, layer.mlp_norm, eps, scale, ranks), NormBefore(*down, following, eps, scale, ranks)

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
        hidden = self._embedded(token_ids)
        rotation = self._rope.at(positions)
        first = self.layers[0].attention_norm
        x = hidden if self.config.norms_after else rms_norm(hidden, first, self.config.norm_eps)
        for index, (layer, (after_attention, after_mlp)) in enumerate(zip(self.layers, self._joins, strict=True)):
            turned = NoRotation() if index in self.config.unrotated_layers else rotation
            attended = attention.run(index, *self._qkv(layer, x, turned))
            x = after_attention(hidden, attended.flatten(1))
            x = after_mlp(hidden, layer.mlp(x))
        return hidden

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Logits `[rows, vocab]` float32 of rows of `hidden`, written to `out` if given; of float64 weights, float64.

        Only rank 0 has all columns; the others' results mean nothing.
        """
        if not len(hidden):  # Kernels do not accept zero rows.
            return hidden.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        columns = linear(rms_norm(hidden, self.norm, self.config.norm_eps), self.head)
        if self.config.scales.logits != 1.0:
            columns.div_(self.config.scales.logits)
        logits = self._ranks.gather_columns(columns)[:, : self.config.vocab_size].contiguous()
        return logits.to(torch.promote_types(logits.dtype, torch.float32)) if out is None else out.copy_(logits)

    def _embedded(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The scaled embeddings `[tokens, hidden]`; a rank looks up the tokens of its part of the vocabulary."""
        if self._ranks.num_ranks == 1:
            embedded = F.embedding(token_ids, self.embed)
        else:
            rows = token_ids - self._ranks.rank * self._own.vocab_size
            elsewhere = (rows < 0) | (rows >= self._own.vocab_size)
            embedded = F.embedding(rows.masked_fill_(elsewhere, 0), self.embed)
            embedded = self._ranks.all_reduce(embedded.masked_fill_(elsewhere[:, None], 0))
        return embedded if self.config.scales.embedding == 1.0 else embedded.mul_(self.config.scales.embedding)

    def _qkv(
        self, layer: Layer, x: torch.Tensor, rotation: Rotation | FusedRotation | NoRotation
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Projected, normed and rotated q `[tokens, heads, d]`, k and v `[tokens, kv_heads, d]`."""
        config, eps = self._own, self.config.norm_eps
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = linear(x, layer.qkv, layer.qkv_bias).view(-1, heads + 2 * kv_heads, config.head_dim)
        q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
        if layer.q_norm is None or layer.k_norm is None:
            q, k = rotation.together(qkv[:, : heads + kv_heads], heads)
        elif config.qk_norm == "head":
            q, k = rotation.apart(rms_norm(q, layer.q_norm, eps), rms_norm(k, layer.k_norm, eps))
        else:
            q, k = rotation.apart(*norm_all_heads(q, k, layer.q_norm, layer.k_norm, eps, self._ranks))
        return q if self._query_scale == 1.0 else q * self._query_scale, k, v
