"""Phi-3, Phi-3.5 and Phi-4 (mini): fused projections, longrope, and a part of each head that is not rotated."""

from __future__ import annotations

from baton.engine.families.family import DEFAULTS, Family, window_of_all_layers

FAMILY = Family(
    {**DEFAULTS, "rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    window_of_all_layers,
    fused_projections=True,
    rope_kinds={"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"},
    partial_rotary=True,
)
