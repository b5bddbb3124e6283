"""Mixtral: Mistral with experts in every layer, under names of their own."""

from __future__ import annotations

from baton.engine.experts_config import ExpertNames
from baton.engine.families.family import DEFAULTS, Family, window_of_all_layers

EXPERTS = ExpertNames(
    counts=("num_local_experts",),
    intermediate_size="intermediate_size",
    block="block_sparse_moe",
    projections=("w1", "w3", "w2"),
    every_layer=True,
    normalised=True,
)
FAMILY = Family(
    {**DEFAULTS, "rms_norm_eps": 1e-5, "num_key_value_heads": 8, "sliding_window": None},
    window_of_all_layers,
    rope_theta=1_000_000.0,
    experts=EXPERTS,
)
