"""Every model family in the table can read a config.json."""

from __future__ import annotations

import pytest

from baton.engine.checkpoint_tensors import checkpoint_targets, parameter_shapes
from baton.engine.families.table import FAMILIES
from baton.engine.model_config import model_config

SHORTEST = {
    "vocab_size": 320,
    "hidden_size": 4096,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "max_position_embeddings": 8192,
}
EXPERTS = {"num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_family_has_defaults_for_missing_keys_and_its_tensors_fill_its_parameters(architecture: str) -> None:
    family = FAMILIES[architecture]
    config = model_config({"architectures": [architecture], **SHORTEST, **EXPERTS})
    assert (config.experts is None) == (family.experts is None)
    assert (config.qkv_bias, config.qk_norm) == (family.qkv_bias, family.qk_norm)
    assert config.context_tokens == min(family.window({**family.left_out, **SHORTEST}) or 8192, 8192)
    rows: dict[str, int] = {}
    for target in checkpoint_targets(config).values():
        rows[target.parameter] = rows.get(target.parameter, 0) + target.num_rows
    assert rows == {name: shape[0] for name, shape in parameter_shapes(config).items()}
