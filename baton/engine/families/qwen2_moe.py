"""Qwen2-MoE: Qwen2 with experts, beside which each token takes a shared one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baton.engine.experts_config import ExpertNames
from baton.engine.families import qwen2
from baton.engine.families.family import Family

LEFT_OUT = {
    **qwen2.LEFT_OUT,
    "num_key_value_heads": 16,
    "intermediate_size": 5632,
    "shared_expert_intermediate_size": 5632,
    "decoder_sparse_step": 1,
    "norm_topk_prob": False,
    "mlp_only_layers": None,
}
EXPERTS = ExpertNames(counts=("num_experts",), shared_intermediate_size="shared_expert_intermediate_size")


def window(raw: Mapping[str, Any]) -> int | None:
    """The window of the layers that config.json lists, or of the even ones before `max_window_layers`."""
    if raw.get("layer_types") is None:
        return raw["sliding_window"] or None if raw["use_sliding_window"] and raw["max_window_layers"] > 0 else None
    return qwen2.window(raw)


FAMILY = Family(LEFT_OUT, window, qkv_bias=True, experts=EXPERTS)
