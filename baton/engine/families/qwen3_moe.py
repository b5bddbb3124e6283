"""Qwen3-MoE: Qwen3 with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baton.engine.experts_config import ExpertNames
from baton.engine.families.family import DEFAULTS, Family, window_of_all_layers

LEFT_OUT = {
    **DEFAULTS,
    "num_key_value_heads": 4,
    "intermediate_size": 6144,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "norm_topk_prob": False,
    "mlp_only_layers": None,
}


def window(raw: Mapping[str, Any]) -> int | None:
    """The window, which all layers have if it is turned on."""
    return window_of_all_layers(raw) if raw["use_sliding_window"] else None


FAMILY = Family(LEFT_OUT, window, attention_bias=True, qk_norm="head", experts=ExpertNames())
