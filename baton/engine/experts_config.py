"""The experts of a model's layers, as its config.json describes them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from baton.protocol.errors import ModelError


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """A family's names: keys of config.json, and parts of the names of a checkpoint's tensors."""

    counts: tuple[str, ...] = ("num_local_experts", "num_experts")  # Keys of the number of experts; the first wins.
    intermediate_size: str = "moe_intermediate_size"
    shared_intermediate_size: str | None = None  # None for a family without a shared expert.
    block: str = "mlp"
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    every_layer: bool = False  # Each layer has experts; others read mlp_only_layers and decoder_sparse_step.
    normalised: bool = False  # Whatever config.json says; others read norm_topk_prob.


@dataclass(frozen=True, slots=True)
class Experts:
    """The MLPs of a layer with experts: a router gives each token to `per_token` of `count` of them."""

    count: int
    per_token: int
    intermediate_size: int
    shared_intermediate_size: int  # Of the expert that every token takes too; 0 without it.
    normalised: bool  # The weights of a token's experts are divided by their sum.
    layers: frozenset[int]  # The layers that have experts; the others have a dense MLP.

    def slice(self, num_ranks: int) -> Experts:
        """Those of one rank: its columns of each expert."""
        return replace(
            self,
            intermediate_size=self.intermediate_size // num_ranks,
            shared_intermediate_size=self.shared_intermediate_size // num_ranks,
        )

    def parameters(self, hidden_size: int) -> int:
        """The number of weights of a layer's router and experts."""
        shared = 3 * self.shared_intermediate_size + 1 if self.shared_intermediate_size else 0
        return hidden_size * (self.count * (3 * self.intermediate_size + 1) + shared)

    def values(self, hidden_size: int) -> int:
        """The numbers that they compute for a token: rows sorted by expert, products, and rows in order."""
        taken = self.per_token * (3 * hidden_size + 3 * self.intermediate_size)
        return self.count + taken + 3 * self.shared_intermediate_size


def read_experts(raw: Mapping[str, Any], names: ExpertNames) -> Experts | None:
    """The experts of a config.json; None when no layer has any. Raises `ModelError` for numbers that cannot be."""
    count_key = next((key for key in names.counts if key in raw), names.counts[-1])
    count, step = raw[count_key], 1 if names.every_layer else raw["decoder_sparse_step"]
    if count == 0:
        return None
    shared = raw[names.shared_intermediate_size] if names.shared_intermediate_size else 0
    _check_sizes(
        {
            count_key: count,
            "decoder_sparse_step": step,
            "num_experts_per_tok": raw["num_experts_per_tok"],
            names.intermediate_size: raw[names.intermediate_size],
            **({names.shared_intermediate_size: shared} if names.shared_intermediate_size else {}),
        }
    )
    if raw["num_experts_per_tok"] > count:
        raise ModelError(f"config.json gives each token {raw['num_experts_per_tok']} of {count} experts.")
    dense = () if names.every_layer else raw["mlp_only_layers"] or ()
    layers = {layer for layer in range(raw["num_hidden_layers"]) if (layer + 1) % step == 0 and layer not in dense}
    if not layers:
        return None
    return Experts(
        count=count,
        per_token=raw["num_experts_per_tok"],
        intermediate_size=raw[names.intermediate_size],
        shared_intermediate_size=shared,
        normalised=names.normalised or bool(raw["norm_topk_prob"]),
        layers=frozenset(layers),
    )


def _check_sizes(sizes: Mapping[str, Any]) -> None:
    for name, value in sizes.items():
        if type(value) is not int or not 0 < value < 2**31:
            raise ModelError(f"config.json gives {value!r} for {name}: it must be a positive whole number.")
