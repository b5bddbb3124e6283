"""Llama 2 and 3: what the other families differ from."""

from __future__ import annotations

from baton.engine.families.family import DEFAULTS, Family

FAMILY = Family(DEFAULTS, attention_bias=True, mlp_bias=True)
