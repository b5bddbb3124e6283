"""Qwen3: Qwen2 with a norm of each head's queries and keys in place of their bias."""

from __future__ import annotations

from baton.engine.families.family import Family
from baton.engine.families.qwen2 import LEFT_OUT, window

FAMILY = Family({**LEFT_OUT, "head_dim": 128}, window, attention_bias=True, qk_norm="head")
