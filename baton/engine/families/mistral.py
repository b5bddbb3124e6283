"""Mistral: Llama with a sliding window."""

from __future__ import annotations

from baton.engine.families.family import DEFAULTS, Family, window_of_all_layers

FAMILY = Family({**DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096}, window_of_all_layers)
