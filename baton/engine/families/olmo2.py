"""OLMo 2: norms of the outputs of attention and MLP, and of all queries and all keys of a token."""

from __future__ import annotations

from baton.engine.families.family import DEFAULTS, Family

FAMILY = Family(
    {**DEFAULTS, "rms_norm_eps": 1e-5},
    attention_bias=True,
    qk_norm="projection",
    norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    norms_after=True,
)
