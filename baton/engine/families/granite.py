"""Granite 3 (dense): embeddings, residuals, attention and logits are scaled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baton.engine.families.family import DEFAULTS, Family, Scales


def _scales(raw: Mapping[str, Any]) -> Scales:
    return Scales(
        embedding=raw["embedding_multiplier"],
        residual=raw["residual_multiplier"],
        attention=raw["attention_multiplier"],
        logits=raw["logits_scaling"],
    )


_ONES = dict.fromkeys(("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"), 1.0)
FAMILY = Family({**DEFAULTS, **_ONES}, attention_bias=True, mlp_bias=True, scales=_scales)
